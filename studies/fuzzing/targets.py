"""What is fuzzed: functions that take bytes, and raise where something other than a documented error came out."""

import io
import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openfastervit.data.images import ImageError, open_image
from openfastervit.inference import load_classifier
from openfastervit.models import CheckpointError, read_checkpoint, read_metadata

MAX_PIXELS = 1_000_000
SERVED = ("JPEG", "PNG", "WEBP")
"""What the server decodes. Everything else that Pillow knows is decoded by ``fastervit predict``."""
MAX_BYTES = 4096
"""Of an input."""

_PROGRAMS = frozenset(
    {"os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn", "socket.connect"}
)


class EscapedError(Exception):
    """Something happened that no input may bring about."""


class Sentinel:
    """Sees to it that reading a file starts no program and opens no connection: Python tells of each such step."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _PROGRAMS:
            self.seen.append(event)

    def check(self) -> None:
        """Raise ``EscapedError`` if there was one since the last look."""
        if self.seen:
            seen, self.seen = self.seen, []
            raise EscapedError(f"reading ran {', '.join(seen)}")


def decode(data: bytes) -> None:
    """An image as the server decodes it; of a kind that the server does not take, as ``fastervit predict`` does."""
    try:
        image = open_image(io.BytesIO(data), max_pixels=MAX_PIXELS, formats=SERVED)
    except ImageError as refused:
        _check_message(refused)
        try:
            image = open_image(io.BytesIO(data), max_pixels=MAX_PIXELS)
        except ImageError as error:
            _check_message(error)
            return
    if image.mode != "RGB" or image.width * image.height > MAX_PIXELS:
        raise EscapedError(f"an image came out in {image.mode}, of {image.width} x {image.height}")
    image.tobytes()


def _check_message(error: ImageError) -> None:
    if not str(error) or "\n" in str(error):
        raise EscapedError(f"the error does not fit on a line: {str(error)!r}")


class CheckpointReader:
    """The reader of checkpoints, on files in one folder.

    An input that begins as a pickle is read as it is, and as what a zip archive of ``torch.save`` holds: mutating an
    archive itself mostly breaks its checksums. One that begins with a brace is the header of a safetensors file.

    Args:
        folder: Best in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"checkpoint-{os.getpid()}"

    def __call__(self, data: bytes) -> None:
        """Read it in each of its forms."""
        for content in forms(data):
            self._path.write_bytes(content)
            for read in (read_checkpoint, read_metadata, load_classifier):
                self._read(read)

    def _read(self, read: Callable[[Path], object]) -> None:
        try:
            read(self._path)
        except CheckpointError as error:
            if not str(error).startswith(str(self._path)):
                raise EscapedError(f"{read.__name__}: the error does not name the file: {error}") from error
        except ValueError as error:
            # Documented of load_classifier alone: the file does not tell its network, which has to be named.
            if read is not load_classifier:
                raise EscapedError(f"{read.__name__}: {type(error).__name__}: {error}") from error


def forms(data: bytes) -> list[bytes]:
    """The files that an input stands for."""
    if data.startswith(b"\x80"):
        return [data, archive(data)]
    if data.startswith(b"{"):
        return [struct.pack("<Q", len(data)) + data + bytes(256)]
    return [data]


def archive(pickled: bytes, storages: int = 2) -> bytes:
    """What ``torch.save`` writes around a pickle: an archive, with a few storages beside it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("archive/data.pkl", pickled)
        opened.writestr("archive/version", "3\n")
        opened.writestr("archive/byteorder", "little")
        for number in range(storages):
            opened.writestr(f"archive/data/{number}", bytes(64))
    return file.getvalue()


def header(**metadata: Any) -> bytes:
    """A safetensors file's header, with two tensors."""
    told = {
        "__metadata__": {"format": "pt", "openfastervit": json.dumps(metadata)},
        "stem.conv1.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        "head.fc.weight": {"dtype": "F16", "shape": [112], "data_offsets": [32, 256]},
    }
    return json.dumps(told).encode()
