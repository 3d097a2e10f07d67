"""Labelled images for training and evaluation, wherever they are: one way to open any of them."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from openfastervit.data.folders import FolderSource, list_folder, split_folders
from openfastervit.data.hugging_face import HuggingFaceSet, is_saved
from openfastervit.data.images import ImageMode
from openfastervit.data.labelled import Source, Subset
from openfastervit.data.shards import ShardSet, find_shards, open_shards
from openfastervit.data.splits import SPLITS, choose_split, match_split, split_source
from openfastervit.data.torchvision_sets import TorchvisionSet

__all__ = ["KINDS", "Source", "Subset", "has_split", "open_source", "open_train_val"]

KINDS = ("wds", "hfds", "torch")
"""What ``data`` may begin with, before a "/"; else it is a folder."""


def open_source(
    data: str | os.PathLike[str],
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    mode: ImageMode = "RGB",
    download: bool = False,
) -> Source:
    """Open labelled images.

    Args:
        data: One of

            - a folder with a sub-folder for each class, or with a sub-folder for each split that holds those;
            - a folder of WebDataset shards (``*.tar``), by splits in sub-folders or told by the shards' names;
            - ``wds/PATTERN``: local shards, with braces and wildcards, as ``wds//data/train-{0000..0015}.tar``;
            - a folder written by ``save_to_disk`` of Hugging Face's ``datasets``;
            - ``hfds/NAME``: what ``datasets.load_dataset(NAME)`` gives, from the Hub or a folder;
            - ``torch/NAME``: a data set of torchvision, as ``torch/cifar10``.
        split: "train", "val", "test" or one that the data names otherwise. Names that mean the same stand for each
            other ("training"; "valid", "validation", "eval", "test"). Data that is not divided is all there is of any.
        root: Where ``torch/`` data sets are, where ``hfds/`` keeps downloads, where relative ``wds/`` patterns start.
        classes: A fixed order of classes; the data may have fewer, not others.
        mode: What images are decoded to.
        download: Fetch a ``torch/`` data set that is not there.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If something is unknown, damaged, or does not fit.
    """
    return _find(data, root, download).open(split, classes, mode)


def has_split(
    data: str | os.PathLike[str],
    split: str,
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> bool:
    """Whether the data is divided and has that split, or one that means the same; arguments are ``open_source``'s."""
    return _match(split, _find(data, root, download)) is not None


def open_train_val(
    data: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    val_fraction: float = 0.1,
    train_split: str = "train",
    val_split: str = "val",
    seed: int = 0,
    classes: Sequence[str] | None = None,
    mode: ImageMode = "RGB",
    download: bool = False,
) -> tuple[Source, Source, bool]:
    """Open images to train on and others to validate with, both with the same classes in the same order.

    Where the data has no split for validation, a fraction of the training images is held out by ``split_source``.

    Args:
        data: As in ``open_source``; so are ``root``, ``classes``, ``mode`` and ``download``.
        root: See ``open_source``.
        val_fraction: Held out of each class, where there is no split for validation.
        train_split: What to train on.
        val_split: What to validate with, where it is there.
        seed: Chooses what is held out.
        classes: See ``open_source``.
        mode: See ``open_source``.
        download: See ``open_source``.

    Returns:
        Training, validation, and whether the second was held out of the first.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: As ``open_source`` and ``split_source`` do; and if a class is in validation only.
    """
    collection = _find(data, root, download)
    training = collection.open(train_split, classes, mode)
    found = _match(val_split, collection)
    if found is None:
        if val_split.lower() not in SPLITS:  # asked for by name, and not there
            choose_split(val_split, collection.splits, str(data))
        return *split_source(training, val_fraction, seed), True
    if found == _match(train_split, collection) and "[" not in f"{train_split}{val_split}":
        raise ValueError(
            f"train_split={train_split!r} and val_split={val_split!r} are the same images; give two splits"
        )
    return training, collection.open(val_split, training.classes, mode), False


class _Collection(Protocol):
    """Data that may be divided into splits."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Their names; () if it is not divided."""

    def open(self, split: str, classes: Sequence[str] | None, mode: ImageMode) -> Source: ...


class _Folder:
    """A folder, divided into split folders or not, each of any layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._folders = split_folders(folder)
        self.splits = tuple(self._folders)

    def open(self, split: str, classes: Sequence[str] | None, mode: ImageMode) -> Source:
        chosen = choose_split(split, self.splits, str(self.folder))
        folder = self._folders[chosen] if chosen else self.folder
        if chosen and is_saved(folder):
            return HuggingFaceSet(str(folder)).open(chosen, classes, mode)
        if chosen and _holds_shards(folder):
            return open_shards(find_shards(folder), classes, mode)
        return FolderSource(folder, classes=classes, mode=mode)


def _match(split: str, collection: _Collection) -> str | None:
    """The split that a name, or a slice as "train[:90%]", is of."""
    return match_split(split.partition("[")[0], collection.splits)


def _find(data: str | os.PathLike[str], root: str | os.PathLike[str] | None, download: bool) -> _Collection:
    """What ``data`` names, by the rules of ``open_source``."""
    text = os.fspath(data)
    kind, slash, rest = text.partition("/")
    kind = kind.lower() if slash and isinstance(data, str) else ""
    if re.match(r"(wds/)?([a-z][a-z0-9+.-]*://|pipe:)", text, re.IGNORECASE):
        raise ValueError(
            f"{text} is remote; data is read from local disks and mounted file systems: copy it there first"
        )
    if kind in KINDS and not rest:
        raise ValueError(f"data={text!r} needs a name after {kind}/")
    if kind == "torch":
        return TorchvisionSet(rest, root, download=download)
    if kind == "hfds":
        return HuggingFaceSet(rest, root)
    if download:
        raise ValueError(f"download=True is for torch/NAME and hfds/NAME; {text} must be there already")
    if kind == "wds":
        return ShardSet(os.path.join("" if root is None else root, os.path.expanduser(rest)))  # noqa: PTH111, PTH118
    if root is not None:
        raise ValueError(
            f"root={os.fspath(root)!r} is for {', '.join(f'{kind}/NAME' for kind in KINDS)}; give {text} alone"
        )
    return _find_folder(Path(text).expanduser())


def _find_folder(folder: Path) -> _Collection:
    if folder.is_file():
        if folder.suffix == ".tar":
            return ShardSet(folder)
        raise ValueError(f"{folder} is a file; give a folder, or .tar shards, or unpack it")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}; {_nearest(folder)}")
    if is_saved(folder):
        return HuggingFaceSet(str(folder))
    if _holds_shards(folder):
        return ShardSet(folder)
    return _Folder(folder)


def _nearest(folder: Path) -> str:
    kind = difflib.get_close_matches(folder.parts[0].lower() if folder.parts else "", KINDS, n=1)
    if kind and len(folder.parts) > 1:
        return f"did you mean {kind[0]}/{'/'.join(folder.parts[1:])}?"
    beside = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, beside, n=1)
    return f"did you mean {folder.parent / near[0]}?" if near else "check the path"


def _holds_shards(folder: Path) -> bool:
    """Whether there are tar files, and no folders that might be classes or splits."""
    return any(folder.glob("*.tar")) and not list_folder(folder)[0]
