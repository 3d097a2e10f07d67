"""Data sets of Hugging Face: from the Hub, from a folder, or saved to disk. Needs ``pip install datasets``."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from openfastervit.data.images import ImageError, ImageMode, open_image
from openfastervit.data.labelled import order_classes, some
from openfastervit.data.splits import choose_split

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")

_NAMES = ("string", "large_string")
_WHOLE = frozenset({f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)})


class HuggingFaceSource:
    """A data set of the ``datasets`` library, in its order; images are read as they are stored and decoded by us.

    The image is the column "image" or "img", or else the only one of images; the label is "label", "labels" or
    "fine_label", or else the only one of class labels. Labels may be class labels, whole numbers or names.

    Args:
        dataset: Rows on disk.
        split: What names of images begin with.
        where: The data, as errors name it.
        classes: A fixed order of classes.
        mode: What images are decoded to.

    Raises:
        ValueError: If a column is not to be found, or a label is missing or out of range.
    """

    def __init__(
        self,
        dataset: "Dataset",
        split: str,
        *,
        where: str,
        classes: Sequence[str] | None = None,
        mode: ImageMode = "RGB",
    ) -> None:
        datasets = _library()
        self.split = split
        self.mode = mode
        features = dataset.features
        self._column = _find_column(features, IMAGE_COLUMNS, datasets.Image, "images", where)
        rows = dataset.select_columns([self._column])
        try:
            self._rows = rows.cast_column(self._column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:  # of pyarrow
            raise ValueError(
                f"{where}: column {self._column!r} holds no images but {features[self._column]}"
            ) from error
        label = _find_column(features, LABEL_COLUMNS, datasets.ClassLabel, "labels", where)
        labels, names = _read_labels(dataset, label, where)
        self.labels, self.classes = order_classes(labels, names, classes, where)

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """Split and position, as in "train[17]"."""
        return f"{self.split}[{index}]"

    def open(self, index: int) -> Image.Image:
        """The image, decoded.

        Raises:
            ImageError: If it cannot be read.
        """
        try:
            stored = self._rows[int(index)][self._column]
        except OSError as error:
            raise ImageError(f"its row cannot be read ({error})") from error
        if not stored or (stored["bytes"] is None and not stored["path"]):
            raise ImageError("the row holds no image")
        return open_image(stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"]), self.mode)


class HuggingFaceSet:
    """The splits of a data set that ``datasets`` has written or can load.

    Args:
        name: A name on the Hub, or a folder.
        root: Where what is downloaded is kept; by default where ``datasets`` keeps it.

    Raises:
        ValueError: If ``datasets`` is not installed, or cannot load it.
    """

    def __init__(self, name: str, root: str | os.PathLike[str] | None = None) -> None:
        datasets = _library()
        self.where = name
        self._name = name
        self._root = None if root is None else str(root)
        try:
            if is_saved(Path(name)):
                loaded = datasets.load_from_disk(name)
            else:
                loaded = datasets.load_dataset(name, cache_dir=self._root)
        except Exception as error:  # it raises many kinds, those of pyarrow and of its downloads among them
            raise self._failure(error) from error
        self._splits: dict[str, Dataset] = {"": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)
        self.splits = tuple(split for split in self._splits if split)

    def open(self, split: str, classes: Sequence[str] | None, mode: ImageMode) -> HuggingFaceSource:
        """A split, by the name that ``datasets`` gives it; it may be a slice of one ("train[:10%]").

        Raises:
            ValueError: If there is none of that name.
        """
        base, bracket, part = split.partition("[")
        chosen = choose_split(base, self.splits, self.where) or ""
        dataset = self._splits[chosen]
        if bracket:
            if not chosen or is_saved(Path(self._name)):
                raise ValueError(
                    f"split={split!r}: {self.where} is saved to disk, and has whole splits only; give {base!r}"
                )
            try:
                dataset = _library().load_dataset(self._name, split=f"{chosen}[{part}", cache_dir=self._root)
            except Exception as error:
                raise self._failure(error) from error
        where = f"{self.where}, split {chosen}" if chosen else self.where
        return HuggingFaceSource(dataset, chosen + bracket + part or base, where=where, classes=classes, mode=mode)

    def _failure(self, error: Exception) -> ValueError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return ValueError(f"{self.where}: datasets cannot load it ({reason}); check the name, or the path")


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` has written this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise ValueError("data sets of Hugging Face need the package datasets; pip install datasets") from error
    return datasets


def _find_column(features: dict[str, Any], names: Sequence[str], kind: type, what: str, where: str) -> str:
    """The column of one of these names, or else the only one of the kind."""
    for name in names:
        if name in features:
            return name
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"{where}: which column holds the {what}? There is {some(features, 20)}; rename it to {names[0]!r}"
    )


def _read_labels(dataset: "Dataset", column: str, where: str) -> tuple[np.ndarray, list[str] | None]:
    """Labels, and the names of their classes where they have any."""
    feature = dataset.features[column]
    kind = getattr(feature, "dtype", "")
    if kind not in _NAMES and kind not in _WHOLE:
        raise ValueError(f"{where}: labels in column {column!r} must be whole numbers or names, not {feature}")
    values = dataset.select_columns([column]).with_format("arrow")[:][column]
    if values.null_count:
        missing = values.is_null().to_pylist().index(True)
        raise ValueError(f"{where}: image {missing} has no label in column {column!r}; leave it out, or label it")
    if kind in _NAMES:
        names, labels = np.unique(values.to_numpy().astype(str), return_inverse=True)
        return labels, names.tolist()
    return values.to_numpy(), getattr(feature, "names", None)
