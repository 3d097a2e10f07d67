"""What a WebDataset shard holds: its images, where they lie in the file, and their labels."""

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from openfastervit.data.images import SUFFIXES

LABEL_KEYS = ("label", "cls")
"""Where a ``.json`` tells the label."""


def read_index(shard: Path) -> Iterator[tuple[str, int, int, int]]:
    """Name, offset, size and label of each image in a shard, in order.

    Raises:
        ValueError: If the shard is damaged, or a sample is not complete.
        OSError: If it cannot be opened.
    """
    sample = _Sample(shard, "")
    for member, content in _read_members(shard):
        folder, slash, name = member.name.rpartition("/")
        stem, dot, extension = name.partition(".")
        if not stem or not dot or re.match(r"__[^/]*__($|/)", member.name):  # what WebDataset passes over, too
            continue
        key = f"{folder}{slash}{stem}"
        if key != sample.key:
            yield from sample.finish()
            sample = _Sample(shard, key)
        sample.add(extension.lower(), member, content)
    yield from sample.finish()


class _Sample:
    """Files of one key, while a shard is read."""

    def __init__(self, shard: Path, key: str) -> None:
        self.shard = shard
        self.key = key
        self.image: tarfile.TarInfo | None = None
        self.texts: dict[str, bytes] = {}

    def add(self, extension: str, member: tarfile.TarInfo, content: bytes | None) -> None:
        if f".{extension}" in SUFFIXES:
            if self.image is not None:
                raise ValueError(f"{self._name()} has two images, {self.image.name} and {member.name}; keep one")
            self.image = member
        elif content is not None:
            if extension in self.texts:
                raise ValueError(f"{self._name()} has two files .{extension}; each sample needs a name of its own")
            self.texts[extension] = content

    def finish(self) -> Iterator[tuple[str, int, int, int]]:
        if self.image is not None:
            yield self.image.name, self.image.offset_data, self.image.size, self._label()
        elif "cls" in self.texts:
            raise ValueError(f"{self._name()} has a label and no image; looked for {' '.join(sorted(SUFFIXES))}")

    def _label(self) -> int:
        value: object = None
        text = self.texts.get("cls", self.texts.get("json"))
        if text is not None and "cls" in self.texts:
            value = text.decode("utf-8", "replace").strip()
        elif text is not None:
            try:
                fields = json.loads(text)
            except ValueError as error:
                raise ValueError(f"{self._name()}: its .json does not read ({error})") from error
            value = (
                next((fields[key] for key in LABEL_KEYS if key in fields), None) if isinstance(fields, dict) else None
            )
        if value is None:
            raise ValueError(
                f"{self._name()} has no label; write its class, counted from 0, into a .cls beside the image, or a "
                f".json with the key {' or '.join(map(repr, LABEL_KEYS))}"
            )
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 10**18:
            raise ValueError(f"{self._name()} has the label {value!r}; it must be a whole number, counted from 0")
        return value

    def _name(self) -> str:
        return f"{self.shard}: sample {self.key!r}"


def _read_members(shard: Path) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """The plain files in a shard, with what is in them where it may tell a label."""
    count = 0
    with open(shard, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all of them
                    count += 1
                    if member.issparse() or member.size < 0:
                        raise tarfile.ReadError(f"{member.name} cannot be read in place")
                    if member.isreg():
                        yield member, _content(file, member)
            # tarfile takes a damaged header for the end, unless it is the first.
            file.seek(archive.offset)
            rest = file.read(tarfile.BLOCKSIZE)
        except (tarfile.TarError, ValueError, OverflowError, OSError) as error:  # numbers in a header may be anything
            hint = f" after {count} files" if count else "; it must be a plain tar file, not compressed"
            raise ValueError(f"{shard} is damaged{hint} ({error}); write or fetch it again") from error
    if rest != bytes(tarfile.BLOCKSIZE):
        what = "a damaged header" if rest else "no mark of its end: it may be cut off"
        raise ValueError(f"{shard} is damaged: after {count} files it has {what}; write or fetch it again")


def _content(file: IO[bytes], member: tarfile.TarInfo) -> bytes | None:
    """What is in a file that may tell a label."""
    if not member.name.lower().endswith((".cls", ".json")):
        return None
    file.seek(member.offset_data)
    return file.read(member.size)
