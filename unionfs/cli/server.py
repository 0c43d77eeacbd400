"""The server's side of a mount: open the layers, attach, serve, clean up.

Imports what is heavy; imported only by the process that serves, before the mount is attached. From then on nothing may be
looked up by a path that could lead into the mount itself: no import, no time zone, no registry by its name.
"""

from __future__ import annotations

import codecs
import logging
import os
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from importlib.machinery import ModuleSpec
from itertools import chain
from types import ModuleType

from unionfs import state
from unionfs.cli import logs
from unionfs.cli.attach import Reporter, Request, claims, may_allow_other, wait_for_upper
from unionfs.cli.detach import detach
from unionfs.engines import features
from unionfs.errors import MountError, printable
from unionfs.fuse import mounting, session
from unionfs.linux import mounts
from unionfs.linux.process import overflow_ids
from unionfs.options import MountOptions
from unionfs.overlay.stack import Stack, open_stack
from unionfs.overlay.union import Union

_NO_DEVICES = "the upper directory cannot hold the kernel's whiteouts: deletions are kept in "
_WHITEOUT_FILES = _NO_DEVICES + ".wh. files, which the kernel's overlayfs does not read"
_WHITEOUT_MARKS = _NO_DEVICES + "attributes, which the kernel's overlayfs reads in lower layers only"
_NO_INDEX = "a layer's filesystem has no file handles: hard links of a lower are broken by copying up, as with index=off"

_log = logging.getLogger("unionfs")


def run(request: Request, reporter: Reporter) -> None:
    """Mount and serve until the mount is gone. Until ready() failures are raised, UnionfsError or OSError."""
    logs.start(request.log, debug=request.debug, foreground=request.foreground)
    _take_all_descriptors()
    with ExitStack() as cleanup:
        stack = open_layers(request.options)
        owned = cleanup.enter_context(ExitStack())
        owned.callback(stack.close)
        owned.callback(stack.unmark)
        if stack.work is not None and stack.work.whiteout_files:
            reporter.warning(_WHITEOUT_FILES)
        elif stack.work is not None and stack.work.whiteout_marks is not None:
            reporter.warning(_WHITEOUT_MARKS)
        if stack.features.index and stack.upper is not None and stack.index is None:
            reporter.warning(_NO_INDEX)
        record = _describe(request, stack)
        os.chdir("/")
        registration = state.Registration.somewhere()
        if registration is None:
            reporter.warning("there is no place to record the mount in: unionfs list and stats will know little of it")
        else:
            cleanup.callback(registration.remove)
        settings, warning = _settings(request.options, stack, engine=request.engine, debug=request.debug)
        if warning:
            reporter.warning(warning)
        union = Union(stack, acl=request.options.acl, static_links=request.options.static_nlink)
        if request.options.live:
            from unionfs.overlay.watch import Watcher

            union.tree.watcher = Watcher(stack.lowers)
        refusal = _Refusal()
        cleanup.callback(refusal.end)
        prepare_first = _covers_modules(request.target)
        mount = _Mount(request, reporter, record, registration, settings)
        owned.pop_all()  # the session closes the union, and that its layers
        session.serve(
            union,
            mount.fuse_fd,
            settings,
            on_ready=mount.attach,
            control=None if registration is None else registration.control,
            detach=mount.leave,
            on_prepared=refusal.begin,
            prepare_first=prepare_first,
            warn=reporter.warning,
        )
        mount.give_up()
        if mount.failure is not None:
            raise mount.failure


def open_layers(options: MountOptions) -> Stack:
    """The opened layers; an upper that is about to be free is waited for."""
    wanted = features(options, overflow_ids())
    return wait_for_upper(
        options, lambda: open_stack(options.lowers, options.upper, options.work, wanted, data=options.data_lowers)
    )


def _describe(request: Request, stack: Stack) -> state.Record:
    """The record of the mount, still without its device. Paths are made absolute here, before the directory changes."""
    options = request.options
    words = ("ro" if options.read_only or stack.upper is None else "rw", *sorted(options.vfs_flags))
    words += tuple(word for word in ("volatile", "userxattr") if getattr(options, word))
    words += ("whfiles",) if stack.features.whfiles else ()
    words += ("index=on",) if stack.features.index else ()
    return state.Record(
        device="",
        pid=os.getpid(),
        target=request.target,
        lowers=tuple(os.path.realpath(path) for path in options.lowers),
        upper=None if options.upper is None else os.path.realpath(options.upper),
        work=None if options.work is None else os.path.realpath(options.work),
        options=",".join(words),
        started=time.time(),
        claims=claims(options),
        data_lowers=tuple(os.path.realpath(path) for path in options.data_lowers),
        engine=request.engine,
    )


def _settings(options: MountOptions, stack: Stack, *, engine: str, debug: bool) -> tuple[mounting.Settings, str | None]:
    """The session's settings, and a warning for the user."""
    allow_other, warning = may_allow_other(options.allow_other)
    settings = mounting.Settings(
        fsname=os.fsdecode(options.fsname or b"unionfs"),
        subtype=options.subtype or "unionfs",
        allow_other=allow_other,
        read_only=options.read_only or stack.upper is None,
        mount_attrs=options.vfs_flags,
        acl=options.acl,
        debug=debug,
        engine=engine,
        io=options.io or "cached",
    )
    return settings if options.timeout is None else settings._replace(timeout=options.timeout), warning


class _Mount:
    """The mount itself. As root it stays detached, seen by nobody, until the session has answered the kernel's first request: setting the
    session up opens files (libfuse /dev/null, for one) that may lie where the mount will be."""

    def __init__(
        self,
        request: Request,
        reporter: Reporter,
        record: state.Record,
        registration: state.Registration | None,
        settings: mounting.Settings,
    ) -> None:
        """Make it. Raises MountError."""
        self._request = request
        self._reporter = reporter
        self._record = record
        self._registration = registration
        self._mount_fd = -1
        self._device = ""
        #: Why it could not be attached.
        self.failure: Exception | None = None
        if os.geteuid() == 0:
            self.fuse_fd, self._mount_fd = mounting.create_mount(settings)
        else:
            self.fuse_fd = mounting.mount_with_fusermount(settings, request.target)

    def attach(self) -> None:
        """Show the mount, record it, tell the caller. After a failure the mount is gone, and with it the session ends by itself."""
        target = self._request.target
        try:
            if self._mount_fd >= 0:
                mounts.move_mount(self._mount_fd, target)
            self._settle(target)
        except OSError as exc:
            self.failure = MountError(f"cannot mount on {printable(target)}: {exc.strerror}")
            self.leave()
        else:
            self._reporter.ready()
        self.give_up()

    def _settle(self, target: bytes) -> None:
        info = mounts.mount_at(target)
        self._device = "" if info is None else info.device
        if self._request.options.private:
            with suppress(OSError):  # users may not
                mounts.mount(b"none", target, None, mounts.MS_PRIVATE)
        if self._registration is not None and self._device:
            self._registration.publish(self._record._replace(device=self._device))

    def leave(self) -> None:
        """Unmount; but not what somebody may have mounted over us meanwhile."""
        info = mounts.mount_at(self._request.target)
        if info is None or info.device != self._device:
            return
        try:
            detach(self._request.target, lazy=True)
        except MountError as exc:
            _log.error("%s", exc)

    def give_up(self) -> None:
        """Let go of the descriptor of the mount: attached it needs none, and unattached it is gone."""
        if self._mount_fd >= 0:
            os.close(self._mount_fd)
            self._mount_fd = -1


def _take_all_descriptors() -> None:
    """Layers and cached files each need one; the limit on them is often a quarter of what may be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Refusal:
    """Finds no module: a file of the standard library may lie behind our own mount, and reading it would wait for ourselves."""

    def begin(self) -> None:
        """From now on nothing is imported."""
        for codec in ("ascii", "latin-1", "utf-8", "unicode_escape"):
            codecs.lookup(codec)
        sys.meta_path.insert(0, self)

    def end(self) -> None:
        """As before."""
        with suppress(ValueError):
            sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        raise ImportError(f"{name} was not imported before the mount")


#: What is opened on the way beside modules: by the dynamic loader, by trio's search for a library, by OpenSSL.
_BESIDE_MODULES = ("/etc/ld.so.cache", "/etc/ssl", "/sbin/ldconfig", "/lib", "/lib64", "/usr/lib/ssl", "/dev/null", "/proc/self")


def _covers_modules(target: bytes) -> bool:
    """Whether what modules are imported from lies in *target*, by whatever path, or *target* in a directory of them.

    Not for a target that is mounted already: it would ask us.
    """
    if _is_among(target, _with_those_above(sys.path, [os.__file__], _BESIDE_MODULES, _mapped())):
        return True
    above = _with_those_above([os.fsdecode(target)])
    return any(_is_among(os.fsencode(entry), above) for entry in sys.path if os.path.isdir(entry))


def _mapped() -> set[str]:
    """The files that are mapped into this process: its interpreter and libraries; others lie beside them."""
    with open("/proc/self/maps") as lines:
        return {words[5] for words in map(str.split, lines) if len(words) == 6 and words[5].startswith("/")}


def _with_those_above(*paths: Iterable[str]) -> set[str]:
    """The *paths* without their symlinks, and all directories that they lie in."""
    found = set[str]()
    for path in chain(*paths):
        path = os.path.realpath(path)
        while path not in found:
            found.add(path)
            path = os.path.dirname(path)
    return found


def _is_among(directory: bytes, paths: set[str]) -> bool:
    """Whether *directory* is one of *paths*, perhaps by another name."""
    wanted = os.stat(directory)
    for path in paths:
        with suppress(OSError):
            if os.path.samestat(os.stat(path), wanted):
                return True
    return False
