"""Writing that a full disk, a kill or a power cut leaves whole: the old state, or the new one, never a part of it."""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_LEFTOVER = re.compile(r"\.(.+)\.(?:[0-9a-f]{8}|(replaced))\.tmp")
"""Names of what is being written or taken away. A dot first: no pattern for finished files finds them."""


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file beside its place, flush it to the disk, and move it there.

    Args:
        path: The file. One that is there already stays whole until the new one is.
        content: The bytes, or a function that writes them.

    Raises:
        OSError: If it cannot be written: with the file's name, and with the free space where the disk is full.
    """
    path = Path(path)
    temporary = temporary_for(path)
    try:
        with open(temporary, "xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException as error:
        full = is_full(error)
        free = free_space(path.parent) if full else ""
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and full:
            text = f"{error.strerror} ({free}); what was there before is whole"
            raise OSError(error.errno, text, str(path)) from error
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def write_directory(path: str | os.PathLike[str], fill: Callable[[Path], None]) -> None:
    """Make a folder beside its place, flush all of it to the disk, and move it there.

    A folder that has the name already is moved aside first, for no file system replaces one folder by another in one
    step: a kill between the two moves leaves it aside, where ``recover`` finds it.

    Args:
        path: The folder.
        fill: Writes its files into the folder that it is given.

    Raises:
        OSError: If it cannot be written. The old folder is in its place then.
    """
    path = Path(path)
    temporary = temporary_for(path)
    aside = path.with_name(f".{path.name}.replaced.tmp")
    try:
        temporary.mkdir()
        fill(temporary)
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in names:
                with open(Path(folder, name), "rb+") as file:
                    os.fsync(file.fileno())
            sync_directory(Path(folder))
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Remove a folder, under a temporary name: a kill in between leaves no half of it under its own.

    Raises:
        OSError: If it cannot be removed.
    """
    temporary = temporary_for(path)
    os.replace(path, temporary)
    shutil.rmtree(temporary)


def recover(folder: Path) -> None:
    """Clear a folder of what interrupted writes left directly in it, and bring back what they had moved aside.

    Only for a folder that nobody else writes into.
    """
    for entry in sorted(folder.iterdir()):
        match = _LEFTOVER.fullmatch(entry.name)
        if match is None:
            continue
        place = folder / match[1]
        if match[2] and not place.exists():
            os.replace(entry, place)
        elif entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    sync_directory(folder)


def temporary_for(path: Path) -> Path:
    """A free name beside ``path``, one that ``recover`` knows."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def sync_directory(folder: Path) -> None:
    """Flush a folder's list of names to the disk: a moved file keeps its new name through a power cut."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such thing
            raise
    finally:
        os.close(handle)


def is_full(error: BaseException) -> bool:
    """Whether writing failed for want of space: a full disk, a used-up quota, a limit on the size of files."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def free_space(folder: Path) -> str:
    """Such as ``"12.3 MB free on that disk"``."""
    with contextlib.suppress(FileNotFoundError):
        return f"{size_in_words(shutil.disk_usage(folder).free)} free on that disk"
    return "its folder is gone"


def size_in_words(size: float) -> str:
    """A number of bytes, such as ``"12.3 MB"``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
