"""WebDataset shards: tar files in which each image lies beside its label."""

import glob
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from openfastervit.data.images import ImageError, ImageMode, open_image
from openfastervit.data.labelled import order_classes
from openfastervit.data.packed import PackedStrings
from openfastervit.data.shard_index import read_index
from openfastervit.data.splits import SPLITS, choose_split

CLASS_FILES = ("classes.txt", "classes.json", "_info.json")
"""Where the names of classes are told, beside the shards or above them: a name a line, or a list, or {name: label}."""

_CLASS_KEYS = ("classes", "class_names", "label_names")


class ShardSource:
    """Images in tar files, by file and then by place in it.

    As in WebDataset, files that follow each other with the same path up to the first dot of the name are one sample:
    an image (``.jpg``, ``.png``, ...), and its label in ``.cls`` or else in ``.json``. The files are listed once, here;
    an image is read by seeking. The file is opened anew each time, so that any number of shards, threads and processes
    will do.

    Args:
        shards: Tar files, not compressed.
        names: Names of the classes, where labels have any.
        classes: A fixed order of classes.
        mode: What images are decoded to.

    Raises:
        ValueError: If a shard is damaged, a sample is not complete, or a label is out of range.
        OSError: If a shard cannot be read.
    """

    def __init__(
        self,
        shards: Sequence[str | os.PathLike[str]],
        *,
        names: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        mode: ImageMode = "RGB",
    ) -> None:
        self.shards = [Path(shard) for shard in shards]
        self.mode = mode
        self._folder = os.path.commonpath([shard.parent for shard in self.shards])
        members: list[str] = []
        places: list[tuple[int, int, int, int]] = []
        for number, shard in enumerate(self.shards):
            for member, offset, size, label in read_index(shard):
                members.append(member)
                places.append((number, offset, size, label))
        where = str(self.shards[0]) if len(self.shards) == 1 else f"{len(self.shards)} shards in {self._folder}"
        if not places:
            raise ValueError(f"{where}: no images; a sample is an image beside its label, as 12.jpg and 12.cls")
        self._members = PackedStrings(members)
        self._shard, self._offset, self._size, labels = np.array(places, dtype=np.int64).T.copy()
        self.labels, self.classes = order_classes(labels, names, classes, where)

    def __len__(self) -> int:
        return len(self._members)

    def name(self, index: int) -> str:
        """The shard's path below the folder that holds all, then the image's in the shard."""
        shard = os.path.relpath(self.shards[self._shard[index]], self._folder)
        return f"{shard.replace(os.sep, '/')}/{self._members[index]}"

    def open(self, index: int) -> Image.Image:
        """The image, decoded.

        Raises:
            ImageError: If it cannot be read.
        """
        size = int(self._size[index])
        try:
            with open(self.shards[self._shard[index]], "rb", buffering=0) as file:
                file.seek(int(self._offset[index]))
                content = _read_all(file, size)
        except OSError as error:
            raise ImageError(f"its shard cannot be read ({error.strerror or error})") from error
        if len(content) < size:
            raise ImageError("its shard ends before it does: the file has changed since it was listed")
        return open_image(io.BytesIO(content), self.mode)


class ShardSet:
    """Shards, which are divided into splits where their names tell so.

    Args:
        pattern: What ``find_shards`` takes.

    Raises:
        FileNotFoundError: If a shard is not there.
        ValueError: If the pattern is wrong, or some names tell a split and others do not.
    """

    def __init__(self, pattern: str | os.PathLike[str]) -> None:
        self.where = str(pattern)
        self.shards = find_shards(pattern)
        self._by_split = shard_splits(self.shards)
        self.splits = tuple(self._by_split)

    def open(self, split: str, classes: Sequence[str] | None, mode: ImageMode) -> ShardSource:
        """A split; all shards where they are not divided.

        Raises:
            ValueError: If there is none of that name, or a shard is damaged.
        """
        chosen = choose_split(split, self.splits, self.where)
        return open_shards(self._by_split[chosen] if chosen else self.shards, classes, mode)


def open_shards(shards: Sequence[Path], classes: Sequence[str] | None, mode: ImageMode) -> ShardSource:
    """Shards with the names of classes that are told beside them; raises what ``ShardSource`` does."""
    return ShardSource(shards, names=read_class_names(shards), classes=classes, mode=mode)


def find_shards(pattern: str | os.PathLike[str]) -> list[Path]:
    """The tar files that a folder, a path, or a pattern stands for, in order.

    Args:
        pattern: A folder (all ``*.tar`` in it), a file, or a pattern with braces (``train-{0000..0015}.tar``) and
            wildcards (``train-*.tar``).

    Raises:
        FileNotFoundError: If a file that is named is not there, or nothing matches.
        ValueError: If the pattern's braces do not match.
    """
    path = Path(pattern)
    if path.is_dir():
        found = sorted(shard for shard in path.glob("*.tar") if not shard.name.startswith("."))
        if not found:
            raise FileNotFoundError(f"no shards in {path}; looked for *.tar")
        return found
    found = []
    for name in expand_braces(str(pattern)):
        if glob.has_magic(name) and not Path(name).exists():
            matches = sorted(Path(match) for match in glob.glob(name, recursive=True))  # noqa: PTH207  any root
            if not matches:
                raise FileNotFoundError(f"no shard matches {name}; check the pattern")
            found += matches
        elif Path(name).is_file():
            found.append(Path(name))
        else:
            raise FileNotFoundError(f"no shard at {name}; check the path, or the numbers in braces")
    return list(dict.fromkeys(found))


def shard_splits(shards: Sequence[Path]) -> dict[str, list[Path]]:
    """Shards by the split that their names tell (``train-0000.tar``, ``in1k-validation-00.tar``); {} if none does.

    Raises:
        ValueError: If some tell one and others do not.
    """
    splits: dict[str, list[Path]] = {}
    untold = []
    for shard in shards:
        told = {word for word in re.split(r"[^a-z]+", shard.stem.lower()) if word in SPLITS}
        if len(told) == 1:
            splits.setdefault(told.pop(), []).append(shard)
        else:
            untold.append(shard)
    if splits and untold:
        raise ValueError(
            f"{untold[0]} tells no split by its name, where {next(iter(splits.values()))[0].name} does; rename it, or "
            "give a pattern for the shards of one split"
        )
    return splits


def read_class_names(shards: Sequence[Path]) -> list[str] | None:
    """The names of classes told beside the shards, or in the folder above where theirs is a split's; else None.

    Raises:
        ValueError: If a file of names cannot be understood.
        OSError: If it cannot be read.
    """
    folder = Path(os.path.commonpath([shard.absolute().parent for shard in shards]))
    for place in [folder, *([folder.parent] if folder.name.lower() in SPLITS else [])]:
        for name in CLASS_FILES:
            if (place / name).is_file() and (names := _parse_class_names(place / name)) is not None:
                return names
    return None


def _parse_class_names(file: Path) -> list[str] | None:
    mend = "write a name a line in classes.txt, or a list of names in classes.json"
    try:
        text = file.read_text(encoding="utf-8")
        content = text.splitlines() if file.suffix == ".txt" else json.loads(text)
    except ValueError as error:  # not UTF-8, not JSON
        raise ValueError(f"{file} does not read ({error}); {mend}") from error
    if isinstance(content, dict):
        content = next((content[key] for key in _CLASS_KEYS if key in content), content)
    if isinstance(content, dict) and file.name == "_info.json":
        return None  # it tells of other things
    if isinstance(content, dict):
        by_label = content if all(isinstance(name, str) for name in content.values()) else _inverse(content)
        if sorted(by_label) != sorted(map(str, range(len(by_label)))):
            raise ValueError(f"{file} must number the classes 0, 1, ... without gaps; {mend}")
        content = [by_label[str(label)] for label in range(len(by_label))]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{file} holds no list of names; {mend}")
    names = [name.strip() for name in content]
    while names and not names[-1]:
        names.pop()
    return names


def _inverse(labels: dict[str, object]) -> dict[str, str]:
    return {str(label): name for name, label in labels.items()}


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for, in order; itself where there is a file of that name.

    Raises:
        ValueError: If the braces do not match.
    """
    if "{" not in pattern or Path(pattern).exists():
        return [pattern]
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise ValueError(f"{pattern}: braces need the package braceexpand; pip install braceexpand") from error
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"{pattern}: its braces do not match ({error})") from error


def _read_all(file: IO[bytes], size: int) -> bytes:
    """Up to ``size`` bytes; a single read may give fewer."""
    content = file.read(size)
    while len(content) < size and (more := file.read(size - len(content))):
        content += more
    return content
