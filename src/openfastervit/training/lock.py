"""A folder for one process alone. The kernel lets go of the lock when the process ends, by whatever signal."""

import contextlib
import errno
import os
import platform
import warnings
import weakref
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class FolderLock:
    """Holds ``folder/.lock`` from construction to ``close``.

    Where the system or the file system knows no locks, a warning says so and nothing is held.

    Raises:
        BlockingIOError: If another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._handle: int | None = None  # for __del__, if there is no opening it
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        _open.add(self)
        try:
            self._take()
        except BaseException:
            self._shut()
            raise

    def _take(self) -> None:
        assert self._handle is not None
        folder = self.path.parent
        unlocked = f"{folder} cannot be locked on this system: take care that no second run writes into it"
        if fcntl is None:
            warnings.warn(unlocked, stacklevel=4)
            return
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._handle, 200, 0).decode(errors="replace").strip() or "another process"
            raise BlockingIOError(
                f"{folder} is in use: {holder} is training into it; wait for it, stop it, or give another folder"
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            warnings.warn(unlocked, stacklevel=4)
            return
        os.ftruncate(self._handle, 0)
        # For whoever finds it locked. A lock needs no space on the disk, its holder's name does.
        with contextlib.suppress(OSError):
            os.pwrite(self._handle, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)

    def close(self) -> None:
        """Let go. The file stays: removing it would let two processes hold locks of the same name."""
        if self._handle is not None and fcntl is not None:
            os.ftruncate(self._handle, 0)
            with contextlib.suppress(OSError):  # where there are no locks
                fcntl.flock(self._handle, fcntl.LOCK_UN)
        self._shut()

    def _shut(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self._shut()


_open: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _close_in_child() -> None:
    # A lock lives as long as any copy of its handle: loader workers must not keep that of a trainer that was killed.
    for lock in list(_open):
        lock._shut()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
