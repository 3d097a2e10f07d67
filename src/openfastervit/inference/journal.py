"""Files that only grow, with a journal of how far they are whole.

Each line of the journal tells how many images are done, and the lengths and CRC-32 of the files then. After whatever
has ended the process, the last line that the files bear out counts, and what lies after it is cut off: a half-written
row, a block that the power cut left empty.
"""

import json
import os
import time
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

SYNC_SECONDS = 5.0
"""Between flushes to the disk: what a power cut may cost. A killed process loses nothing that was marked."""
_READ = 1 << 20


class _Extent(NamedTuple):
    """The start of a file: its length in bytes and its CRC-32."""

    length: int = 0
    crc: int = 0

    def grown(self, data: bytes) -> "_Extent":
        return _Extent(self.length + len(data), zlib.crc32(data, self.crc))


class _Mark(NamedTuple):
    """A line of the journal."""

    images: int = 0
    failed: int = 0
    rows: _Extent = _Extent()
    unreadable: _Extent = _Extent()

    def line(self) -> bytes:
        return json.dumps([self.images, self.failed, *self.rows, *self.unreadable]).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> "_Mark":
        """Raises ``ValueError`` or ``TypeError`` if the line is not whole."""
        if not line.endswith(b"\n"):
            raise ValueError("cut off")
        images, failed, length, crc, other_length, other_crc = map(int, json.loads(line))
        return cls(images, failed, _Extent(length, crc), _Extent(other_length, other_crc))


class Journal:
    """Rows, and a list of images without a row, in a folder: on from where the files there are whole.

    Raises:
        OSError: If a file cannot be read or written.
    """

    NAMES = ("rows", "unreadable.jsonl", "journal.jsonl")

    def __init__(self, folder: Path) -> None:
        self.rows, self.unreadable, journal = (folder / name for name in self.NAMES)
        self._mark, length = _last_mark(self.rows, self.unreadable, journal)
        lengths = (self._mark.rows.length, self._mark.unreadable.length, length)
        self._files = [
            _opened(path, length) for path, length in zip((self.rows, self.unreadable, journal), lengths, strict=True)
        ]
        self._synced_at = time.monotonic()

    @property
    def images(self) -> int:
        """Images that are done, from the first."""
        return self._mark.images

    @property
    def failed(self) -> int:
        """Of these, how many have no row."""
        return self._mark.failed

    @property
    def empty(self) -> bool:
        """Whether there are no rows yet."""
        return self._mark.rows.length == 0

    def mark(self, images: int, failed: int, rows: bytes, unreadable: bytes) -> None:
        """Write what is new, and that so many images are done with it, so many of them failed."""
        mark = _Mark(images, failed, self._mark.rows.grown(rows), self._mark.unreadable.grown(unreadable))
        for file, data in zip(self._files, (rows, unreadable, mark.line()), strict=True):
            _write(file, data)
        self._mark = mark
        if time.monotonic() - self._synced_at > SYNC_SECONDS:
            self.sync()

    def failures(self) -> Iterator[tuple[str, str]]:
        """The images without a row, each with the reason."""
        return read_failures(self.unreadable)

    def sync(self) -> None:
        """Flush all to the disk."""
        for file in self._files:
            os.fsync(file.fileno())
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Flush all to the disk, and let go of the files. Closing twice is harmless."""
        if not self._files[0].closed:
            self.sync()
            for file in self._files:
                file.close()


def failure_line(image: str, reason: str) -> bytes:
    """An image without a row, as it is listed: a line of JSON."""
    return json.dumps({"image": image, "reason": reason}).encode() + b"\n"


def read_failures(path: Path) -> Iterator[tuple[str, str]]:
    """The images in such a list, each with the reason."""
    with path.open("rb") as file:
        for line in file:
            failure = json.loads(line)
            yield failure["image"], failure["reason"]


def _last_mark(rows: Path, unreadable: Path, journal: Path) -> tuple[_Mark, int]:
    """The last line of the journal that the files bear out, and the journal's length with it."""
    last, length = _Mark(), 0
    if not (journal.exists() and rows.exists() and unreadable.exists()):
        return last, length
    with journal.open("rb") as lines, rows.open("rb") as row_file, unreadable.open("rb") as failure_file:
        for line in lines:
            try:
                mark = _Mark.read(line)
            except (ValueError, TypeError):  # none of ours, or not all of it
                break
            if not (
                _bears_out(row_file, last.rows, mark.rows)
                and _bears_out(failure_file, last.unreadable, mark.unreadable)
            ):
                break
            last, length = mark, length + len(line)
    return last, length


def _bears_out(file: Any, known: _Extent, told: _Extent) -> bool:
    """Whether a file that was read as far as ``known`` goes on as ``told``."""
    while known.length < told.length:
        data = file.read(min(_READ, told.length - known.length))
        if not data:
            return False
        known = known.grown(data)
    return known == told


def _opened(path: Path, length: int) -> FileIO:
    """A file cut to a length, to be written on from there, without a buffer of Python's."""
    file = FileIO(path, "ab")
    file.truncate(length)
    return file


def _write(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        error.filename = os.fspath(file.name)
        raise
