"""Data sets of torchvision for classification, by name."""

import difflib
import functools
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openfastervit.data.images import ImageError, ImageMode, open_image, to_eight_bits
from openfastervit.data.labelled import order_classes, some
from openfastervit.data.splits import choose_split

_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TWO = {name: {"split": name} for name in ("train", "test")}
_THREE = {name: {"split": name} for name in ("train", "val", "test")}
_WITH_VAL = {name: {"split": name} for name in ("train", "val")}
_WHOLE: Mapping[str, Mapping[str, Any]] = {}

SETS: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "CIFAR10": _BY_FLAG,
    "CIFAR100": _BY_FLAG,
    "Caltech101": _WHOLE,
    "Caltech256": _WHOLE,
    "Country211": {name: {"split": name} for name in ("train", "valid", "test")},
    "DTD": _THREE,
    "EuroSAT": _WHOLE,
    "FGVCAircraft": {name: {"split": name} for name in ("train", "val", "trainval", "test")},
    "FashionMNIST": _BY_FLAG,
    "Flowers102": _THREE,
    "Food101": _TWO,
    "GTSRB": _TWO,
    "ImageNet": _WITH_VAL,
    "Imagenette": _WITH_VAL,
    "KMNIST": _BY_FLAG,
    "MNIST": _BY_FLAG,
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Places365": {"train": {"split": "train-standard"}, "val": {"split": "val"}},
    "RenderedSST2": _THREE,
    "SEMEION": _WHOLE,
    "STL10": _TWO,
    "SVHN": _TWO,
    "StanfordCars": _TWO,
    "USPS": _BY_FLAG,
}
"""Classes of ``torchvision.datasets`` with one label an image: each split, and the arguments that ask for it."""

# Where the data sets keep their labels; they share no public name for it.
_LABELS = ("targets", "labels", "_labels", "y")


class TorchvisionSource:
    """A split of a data set of torchvision, in its order.

    Args:
        dataset: Gives an image and its label for each index.
        split: What names of images begin with.
        where: The data, as errors name it.
        classes: A fixed order of classes.
        mode: What images are decoded to.
    """

    def __init__(
        self, dataset: Any, split: str, *, where: str, classes: Sequence[str] | None = None, mode: ImageMode = "RGB"
    ) -> None:
        self.dataset = dataset
        self.split = split
        self.mode = mode
        self.labels, self.classes = order_classes(_labels(dataset), _class_names(dataset), classes, where)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Split and position, as in "test[17]"."""
        return f"{self.split}[{index}]"

    def open(self, index: int) -> Image.Image:
        """The image, decoded.

        Raises:
            ImageError: If it cannot be read.
        """
        try:
            return to_eight_bits(self.dataset[int(index)][0], self.mode)
        except ImageError:
            raise
        except Exception as error:  # whatever the data set's own reading raises
            raise ImageError(f"torchvision cannot read it ({_line(error)})") from error


class TorchvisionSet:
    """The splits of a data set of torchvision.

    Args:
        name: Its class's name, in any case, with or without "_" and "-".
        root: The folder that torchvision is given.
        download: Fetch it where it is not there.

    Raises:
        ValueError: If the name is unknown, or there is no ``root``.
    """

    def __init__(self, name: str, root: str | os.PathLike[str] | None = None, *, download: bool = False) -> None:
        self.name = find_name(name)
        self.where = f"torch/{self.name.lower()}"
        if root is None:
            raise ValueError(f"{self.where} needs root, the folder that holds it or is to hold it")
        self.root = str(Path(root).expanduser())
        self.download = download
        self.splits = tuple(SETS[self.name])

    def open(self, split: str, classes: Sequence[str] | None, mode: ImageMode) -> TorchvisionSource:
        """A split.

        Raises:
            ValueError: If there is none of that name, or it is damaged or cannot be downloaded.
            FileNotFoundError: If the data set is not there.
        """
        from torchvision import datasets

        chosen = choose_split(split, self.splits, self.where)
        kind = getattr(datasets, self.name)
        options: dict[str, Any] = dict(SETS[self.name][chosen]) if chosen else {}
        accepted = inspect.signature(kind).parameters
        if "loader" in accepted or issubclass(kind, datasets.DatasetFolder):
            options["loader"] = functools.partial(open_image, mode=mode)
        if "download" in accepted:
            options["download"] = self.download
        elif self.download:
            raise ValueError(f"torchvision cannot download {self.name}; put it into {self.root} as its documents say")
        try:
            dataset = kind(self.root, **options)
        except ImportError as error:
            raise ValueError(f"{self.where} needs the package {error.name}; pip install {error.name}") from error
        except (RuntimeError, OSError) as error:
            mend = "check the network" if self.download else "fetch it by download=True (--download)"
            raise FileNotFoundError(f"{self.where} is not to be had in {self.root} ({_line(error)}); {mend}") from error
        except Exception as error:  # what its own readers raise on damaged files
            raise ValueError(f"{self.where} in {self.root} is damaged ({_line(error)}); fetch it again") from error
        return TorchvisionSource(dataset, chosen or split, where=self.where, classes=classes, mode=mode)


def find_name(name: str) -> str:
    """The name that torchvision gives a data set.

    Raises:
        ValueError: If it is none of ``SETS``.
    """
    plain = {known.lower(): known for known in SETS}
    wanted = re.sub(r"[-_]", "", name.lower())
    if wanted not in plain:
        near = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.5)
        hint = f"did you mean torch/{near[0]}? " if near else ""
        raise ValueError(f"torch/{name} is unknown; {hint}there is {some(plain, 100)}")
    return plain[wanted]


def _labels(dataset: Any) -> np.ndarray:
    values = next((getattr(dataset, name) for name in _LABELS if hasattr(dataset, name)), None)
    if values is None:
        values = [label for _, label in dataset._samples]
    return np.asarray(values, dtype=np.int64)


def _class_names(dataset: Any) -> list[str] | None:
    """Names that are each one class's: ImageNet's are in its identifiers, as several of its classes share a name."""
    for attribute in ("wnids", "classes", "categories"):
        if hasattr(dataset, attribute):
            return [str(name) for name in getattr(dataset, attribute)]
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
