"""Processes on a union: ``unionfs run``.

Three processes share the work, so that any of them may be killed and nothing stays behind:

    runner      what the user started (run.py). Forks the other two, owns the terminal, forwards signals, returns the
                exit code.
    server      serves the union (server.py), in a session of its own; removes the throw-away upper when the mount is
                gone.
    container   pid 1 of the new namespaces (container.py), and dies with the runner. The mount is attached in its mount
                namespace only, so the kernel takes it down when the last process of the pid namespace has gone.

    killed      what follows
    runner      the kernel kills pid 1, with it the container, with it the mount; the server sees that and removes the
                directory
    server      the runner kills the container and removes the directory
    pid 1       the kernel kills the rest of the container and takes the mount down; server and runner leave as after a
                normal end
    all         the directory is left, unlocked; the next run removes it

plan.py says what is to be done (pure), the other modules do it.
"""
