"""Which images a job is about, however many."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from openfastervit.inference.closing import Closing


class ImageList(Closing):
    """Paths in order, in a temporary file instead of in memory, and fixed while a folder may change.

    Args:
        paths: Taken to their end at once.

    Raises:
        OSError: If the temporary file cannot be written, or what ``paths`` raises.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  close() closes it
        self._count = 0
        digest = hashlib.sha256()
        try:
            for path in paths:
                line = json.dumps(str(Path(path))).encode() + b"\n"  # names may hold line breaks, and no text
                self._file.write(line)
                digest.update(line)
                self._count += 1
            self._file.flush()
        except BaseException:
            self.close()
            raise
        self.digest = f"sha256:{digest.hexdigest()}"
        """Of the paths and their order: equal for equal lists."""

    def __len__(self) -> int:
        return self._count

    def after(self, count: int = 0) -> Iterator[Path]:
        """The paths but for the first ``count``. One iteration at a time: a new one ends those before it."""
        self._file.seek(0)
        for number, line in enumerate(self._file):
            if number >= count:
                yield Path(json.loads(line))

    def spread(self, count: int) -> Iterator[Path]:
        """So many of the paths, evenly from first to last; all where there are no more. One iteration at a time."""
        total = len(self)
        count = min(count, total)
        for number, path in enumerate(self.after()):
            if (number + 1) * count // total > number * count // total:
                yield path

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()
