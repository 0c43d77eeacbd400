"""What the tests share: mounts that are always undone, a watchdog for hangs, tree snapshots, ACLs and other users."""
