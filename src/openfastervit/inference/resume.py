"""Rows of a long job, kept so that whatever ends it, the same job goes on where it was.

The file ``rows.csv`` appears when it is complete. Until then all of the job lies in the folder ``rows.csv.part``:

- ``settings.json``: what the job was begun with. A job with other settings is refused.
- ``rows``: the rows so far. ``unreadable.jsonl``: the images without a row, and why.
- ``journal.jsonl``: how far these two are whole, a line for each batch; see ``Journal``.

Beside the complete file stand ``rows.csv.json``, which tells what made it, and ``rows.csv.unreadable.jsonl`` if some
images have no row.
"""

import contextlib
import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from openfastervit.atomic import sync_directory
from openfastervit.inference.journal import Journal, failure_line, read_failures

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class JobError(ValueError):
    """A job cannot go on, or would replace what another one made; the message says what to do."""


class Finished(NamedTuple):
    """What is told of a complete file."""

    images: int
    unreadable: int


class Job:
    """A file of rows to be made.

    Args:
        path: The file. A link keeps pointing to what it points to.
        settings: Whatever the rows follow from, in JSON's types: only a job with equal settings goes on.
        versions: Of the software, likewise; a complete file may have been made with others.
    """

    def __init__(
        self, path: str | os.PathLike[str], settings: Mapping[str, Any], versions: Mapping[str, str] | None = None
    ) -> None:
        self.path = Path(os.path.realpath(path))
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self.versions = dict(versions or {})
        self.part = self.path.with_name(f"{self.path.name}.part")
        self.record = self.path.with_name(f"{self.path.name}.json")
        self.unreadable = self.path.with_name(f"{self.path.name}.unreadable.jsonl")

    def look(self) -> Finished | None:
        """Whether the job is done already; None if it is to be begun or to go on.

        Where it is done, what a kill left of its folder is cleared away. Nothing else is changed.

        Raises:
            JobError: If there is an unfinished job with other settings, a file that this job did not make, or another
                process at work on it.
        """
        if self.part.is_dir():
            with locked(self.part):
                return self._look()
        return self._look()

    def _look(self) -> Finished | None:
        finished = self._finished()
        begun = self._begun()
        # A job's last steps: the rows move to their place, the settings go, and then the folder.
        if self._same(finished) and (begun is None or not (self.part / "rows").exists()):
            if self.part.is_dir():
                self._remove()
        elif begun is not None:
            there = {**begun.get("settings", {}), **begun.get("versions", {})}
            found = differences(there, {**self.settings, **self.versions})
            if found:
                raise JobError(
                    f"{self.part} is an unfinished job with other settings ({found}); give those to go on, "
                    "--overwrite to begin anew, or another --out"
                )
            return None
        if not self.path.exists():
            return None
        if finished is None:
            raise JobError(f"{self.path} is there already; give --overwrite to replace it, or another --out")
        if not self._same(finished):
            found = differences(finished["settings"], self.settings)
            raise JobError(
                f"{self.path} was made with other settings ({found}); give --overwrite to replace it, or another --out"
            )
        return Finished(finished["images"], finished["unreadable"])

    def chosen(self) -> dict[str, Any]:
        """What ``begin`` was told when the job was begun; empty if it was not."""
        return dict((self._begun() or {}).get("chosen", {}))

    def failures(self) -> Iterator[tuple[str, str]]:
        """Images without a row in the complete file, each with the reason."""
        if self.unreadable.exists():
            yield from read_failures(self.unreadable)

    @contextlib.contextmanager
    def begin(
        self,
        *,
        header: bytes = b"",
        chosen: Mapping[str, Any] | None = None,
        convert: Callable[[Path, Path], None] | None = None,
        overwrite: bool = False,
    ) -> Iterator["GrowingRows"]:
        """Begin the job, or go on with it. Where the block raises, the batches done are kept.

        Args:
            header: What the rows start with.
            chosen: Settings that were found by measuring; to be used again by who goes on.
            convert: From the rows to the file, where that is not the rows as they are.
            overwrite: Begin with the first image, whatever is there. A complete file stays until the new one is.

        Raises:
            JobError: As ``look``, and if the job is done.
            OSError: If a file cannot be written.
        """
        if self.part.exists() and not self.part.is_dir():
            raise JobError(f"{self.part} is in the way: remove it, or give another --out")
        self.part.mkdir(parents=True, exist_ok=True)
        with locked(self.part):
            rows = None
            try:
                if overwrite:
                    self._forget()
                elif self._look() is not None:
                    raise JobError(f"{self.path} is complete; give --overwrite to make it anew")
                if self._begun() is None:
                    begun = {"settings": self.settings, "versions": self.versions, "chosen": dict(chosen or {})}
                    _write_json(self.part / "settings.json", begun, self.part)
                rows = GrowingRows(self, header, convert)
                yield rows
            finally:
                if rows is not None:
                    rows.close()
                if self.part.exists() and (self._begun() is None if rows is None else rows.done == 0):
                    self._remove()

    def _begun(self) -> dict[str, Any] | None:
        path = self.part / "settings.json"
        begun = _read_json(path)
        if begun is None and path.exists():
            raise JobError(f"{path} is damaged; give --overwrite to begin anew, or another --out")
        return begun

    def _finished(self) -> dict[str, Any] | None:
        """What is told of the complete file, if it is the one that this was told of."""
        record = _read_json(self.record)
        if record is None or not self.path.exists() or self.path.stat().st_size != record.get("bytes"):
            return None
        return record if record.keys() >= {"settings", "images", "unreadable"} else None

    def _same(self, finished: dict[str, Any] | None) -> bool:
        return finished is not None and finished["settings"] == self.settings

    def _forget(self) -> None:
        """Empty the folder of what is ours in it; first what makes it count goes."""
        for name in ("settings.json", *Journal.NAMES, "converted", "temporary"):
            (self.part / name).unlink(missing_ok=True)

    def _remove(self) -> None:
        """Remove the folder. Who opened its lock meanwhile finds that it is gone."""
        self._forget()
        (self.part / ".lock").unlink(missing_ok=True)
        self.part.rmdir()


class GrowingRows:
    """The rows of a job under way, from ``Job.begin``."""

    def __init__(self, job: Job, header: bytes, convert: Callable[[Path, Path], None] | None) -> None:
        self._job = job
        self._convert = convert
        self._journal = Journal(job.part)
        self._rows: list[bytes] = [header] if self._journal.empty else []
        self._failures: list[bytes] = []

    @property
    def done(self) -> int:
        """Images that are dealt with, from the first."""
        return self._journal.images

    @property
    def failed(self) -> int:
        """Of these, how many have no row."""
        return self._journal.failed

    def failures(self) -> Iterator[tuple[str, str]]:
        """Those without a row among the images done, each with the reason."""
        return self._journal.failures()

    def add(self, row: bytes) -> None:
        """The next image's row."""
        self._rows.append(row)

    def fail(self, image: str, reason: str) -> None:
        """The next image has no row."""
        self._failures.append(failure_line(image, reason))

    def mark(self, images: int) -> None:
        """So many images are done, from the first: they are written, and the job would go on after them.

        Raises:
            OSError: If they cannot be written: the disk is full.
        """
        if images > self.done or self._rows:
            failed = self.failed + len(self._failures)
            self._journal.mark(images, failed, b"".join(self._rows), b"".join(self._failures))
            self._rows, self._failures = [], []

    def finish(self, images: int) -> None:
        """All images are done, so many: the file gets its name, and the folder goes.

        Raises:
            OSError: If something cannot be written. The rows are kept, and the job can be finished by another.
        """
        self.mark(images)
        self.close()
        job, complete = self._job, self._journal.rows
        if self._convert is not None:
            complete = job.part / "converted"
            self._convert(self._journal.rows, complete)
            with complete.open("rb+") as file:
                os.fsync(file.fileno())
        if self.failed:
            _replace(job.unreadable, lambda temporary: shutil.copyfile(self._journal.unreadable, temporary), job.part)
        else:
            job.unreadable.unlink(missing_ok=True)
        told = {
            "images": images,
            "unreadable": self.failed,
            "bytes": complete.stat().st_size,
            "settings": job.settings,
            "chosen": job.chosen(),
            "versions": job.versions,
        }
        _write_json(job.record, told, job.part)
        os.replace(complete, job.path)
        sync_directory(job.path.parent)
        job._remove()

    def close(self) -> None:
        """Flush what is marked to the disk, and let go of the files."""
        self._journal.close()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Such as ``"topk: 5 there, 3 here"``."""
    return ", ".join(
        f"{key}: {_shown(there.get(key))} there, {_shown(here.get(key))} here"
        for key in {**there, **here}
        if there.get(key) != here.get(key)
    )


def _shown(value: Any) -> str:
    return f"{value[:15]}..." if isinstance(value, str) and value.startswith("sha256:") else str(value)


def _read_json(path: Path) -> dict[str, Any] | None:
    """What the file says; None if there is none, or it is none of ours."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write_json(path: Path, content: Mapping[str, Any], beside: Path) -> None:
    text = json.dumps(content, indent=2) + "\n"
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), beside)


def _replace(path: Path, write: Callable[[Path], object], folder: Path) -> None:
    """Write a file in the job's folder, flush it to the disk, and move it to its place."""
    temporary = folder / "temporary"
    write(temporary)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder for one process alone; the kernel lets go when the process ends, by whatever signal."""
    used = JobError(f"{folder} is in use by another process; wait for it, or give another --out")
    with (folder / ".lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise used from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                warnings.warn(f"{folder} cannot be locked: take care that no second job writes it", stacklevel=2)
            if not _is_open_at(folder / ".lock", file.fileno()):  # its holder was done, and has removed it
                raise used
        yield


def _is_open_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
