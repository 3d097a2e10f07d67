"""What a job classifies, cut into shards: the tar files of WebDataset, or blocks of a folder's images.

The order of a listing fixes the shards: the same folder gives the same ones, which is what resuming rests on.
"""

import hashlib
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from openfastervit.data.images import SUFFIXES, ImageError, is_image_name, iterate_images
from openfastervit.data.shards import expand_braces, find_shards
from openfastervit.inference.cluster.tar import read_tar

_URL = re.compile(r"[a-z][a-z0-9+.-]+(?=::|://)", re.IGNORECASE)
_LOCAL = ("file", "local")


class Remote(NamedTuple):
    """An image in a store."""

    url: str


Content = Path | Remote | bytes | ImageError
"""Where an image is, the file itself, or why there is none."""


class Item(NamedTuple):
    """An image of a shard: what its row is named, and what is to be decoded."""

    image: str
    content: Content


class Shard(Protocol):
    """Images that are classified together; their rows are one file. It travels to the worker that decodes it."""

    @property
    def name(self) -> str:
        """Of the shard's files, without a suffix; folders in it are those of a tar file's path."""
        ...

    @property
    def fetched(self) -> bool:
        """Whether each image is fetched from a store by itself."""
        ...

    def items(self) -> Iterator[Item]:
        """The images, in order.

        Raises:
            OSError: If the shard cannot be read; it may be at another time.
        """
        ...


@dataclass(frozen=True)
class FolderShard:
    """A block of a folder's images."""

    name: str
    folder: str
    """What relative names start from: a worker has another working directory. Empty for those that are URLs."""
    names: bytes
    """Packed: as a list they would fill the driver's memory."""

    @classmethod
    def of(cls, number: int, folder: str, names: list[str]) -> "FolderShard":
        """The block of that number in the listing."""
        return cls(f"images-{number:06}", folder, zlib.compress(json.dumps(names).encode(), 1))

    @property
    def fetched(self) -> bool:
        """As ``Shard.fetched``."""
        return not self.folder

    def items(self) -> Iterator[Item]:
        """As ``Shard.items``: nothing is read here."""
        for name in json.loads(zlib.decompress(self.names)):
            yield Item(name, Path(self.folder, name) if self.folder else Remote(name))


@dataclass(frozen=True)
class TarShard:
    """A tar file of WebDataset's; rows are named ``shard.tar/key``."""

    name: str
    """The file's path below the folder that holds all shards."""
    location: str
    """An absolute path, or a URL."""

    @property
    def fetched(self) -> bool:
        """As ``Shard.fetched``."""
        return False

    def items(self) -> Iterator[Item]:
        """As ``Shard.items``: the file is read once, from its start to its end."""
        with _opened(self.location) as file:
            for name, content in read_tar(file):
                yield Item(f"{self.name}/{name}" if name else self.name, content)


class Source(NamedTuple):
    """All that a job classifies."""

    shards: list[Shard]
    digest: str
    """Of the names and their order."""
    images: int | None
    """How many; None where the shards do not tell before they are read."""


def find_source(location: str, shard_size: int) -> Source:
    """What a location stands for.

    Args:
        location: A path or a URL of fsspec's: an image, a folder of images, a folder of tar files, a tar file, or a
            pattern for tar files with braces and wildcards.
        shard_size: Images of a folder that make a shard.

    Raises:
        FileNotFoundError: If there is nothing there.
        ValueError: If there are no images, or tar files and images beside each other, or the URL is none of fsspec's.
        OSError: If it cannot be listed.
    """
    path = local_path(location)
    if path is None:
        return _remote_source(location, shard_size)
    if path.lower().endswith(".tar") or _holds_tars(Path(path)):
        tars = [shard.absolute() for shard in find_shards(path)]
        return _tar_source([str(tar) for tar in tars], [tar.as_posix() for tar in tars])
    return _folder_source(iterate_images(path), str(Path.cwd()), shard_size)


def local_path(location: str) -> str | None:
    """A location on this machine's file system as a path; None for a URL of another one."""
    kind = _URL.match(location)
    if kind is None:
        return location
    return location[kind.end() + 3 :] if kind[0].lower() in _LOCAL and "::" not in location else None


def open_store(location: str) -> tuple[Any, str]:
    """The file system of a location, of type ``fsspec.AbstractFileSystem``, and the path on it.

    Raises:
        ValueError: If fsspec knows no such file system, or what it needs is not installed.
    """
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    try:
        file_system, path = url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{location} cannot be opened ({error})") from error
    return file_system, str(path)


def _opened(location: str) -> Any:
    if local_path(location) == location:
        return open(location, "rb")
    file_system, path = open_store(location)
    return file_system.open(path, "rb")


def _holds_tars(folder: Path) -> bool:
    """Whether it is a folder of tar files."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file()]
    return _are_tars(str(folder), names)


def _are_tars(folder: str, names: Iterable[str]) -> bool:
    """Whether of the names directly in a folder some are tar files.

    Raises:
        ValueError: If others are images: it is not said which are meant.
    """
    tar = image = None
    for name in names:
        if name.endswith(".tar") and not name.startswith("."):
            tar = name
        elif is_image_name(name):
            image = name
    if tar and image:
        raise ValueError(
            f"{folder} holds tar files ({tar}) and images ({image}); give '{folder}/*.tar' for the former, or keep the "
            "images in a folder of their own"
        )
    return tar is not None


def _remote_source(location: str, shard_size: int) -> Source:
    file_system, root = open_store(location)
    found: list[str]
    if location.lower().endswith(".tar"):
        found = []
        for pattern in expand_braces(location):
            path = open_store(pattern)[1]
            matches = sorted(file_system.glob(path)) if has_magic(path) else [path] * bool(file_system.exists(path))
            if not matches:
                raise FileNotFoundError(f"no shard at {pattern}; check the address, or the numbers in braces")
            found += matches
        found = list(dict.fromkeys(found))
    else:
        root = root.rstrip("/")
        found = sorted(map(str, file_system.find(root)), key=lambda path: path.split("/"))
        if not found:
            raise FileNotFoundError(f"no image or folder at {location}; check the address")
        below = {path: path[len(root) :].lstrip("/") for path in found if path.startswith(root)}
        if not _are_tars(location, (name for name in below.values() if "/" not in name)):
            images = (path for path, name in below.items() if _is_image(name or path.rpartition("/")[2]))
            return _folder_source(map(file_system.unstrip_protocol, images), "", shard_size, location)
        found = [path for path, name in below.items() if _is_tar(name)]
    return _tar_source([file_system.unstrip_protocol(path) for path in found], found)


def _is_image(name: str) -> bool:
    """By the rules of ``iterate_images``: hidden files and folders are passed over."""
    folders, _, last = name.rpartition("/")
    return is_image_name(last) and not any(folder.startswith(".") for folder in folders.split("/"))


def _is_tar(name: str) -> bool:
    return name.endswith(".tar") and not name.startswith(".") and "/" not in name


def _folder_source(names: Iterable[str], folder: str, shard_size: int, where: str = "") -> Source:
    digest, count = hashlib.sha256(), 0
    shards: list[Shard] = []
    names = iter(names)
    while block := list(itertools.islice(names, shard_size)):
        for name in block:
            digest.update(json.dumps(name).encode() + b"\n")  # names may hold line breaks, and no text
        shards.append(FolderShard.of(len(shards), folder, block))
        count += len(block)
    if not shards:
        raise ValueError(f"no images in {where} or below it; looked for {' '.join(sorted(SUFFIXES))}")
    return Source(shards, f"sha256:{digest.hexdigest()}", count)


def _tar_source(locations: list[str], paths: list[str]) -> Source:
    """Tar files by the paths below the folder that holds all."""
    above = len(os.path.commonpath([path.rpartition("/")[0] for path in paths]))
    names = [path[above:].lstrip("/") for path in paths]
    digest = hashlib.sha256("".join(json.dumps(name) + "\n" for name in names).encode())
    shards = [TarShard(name, location) for name, location in zip(names, locations, strict=True)]
    return Source(list(shards), f"sha256:{digest.hexdigest()}", None)
