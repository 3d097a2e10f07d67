"""ImageNet's class order, and how the folders of a data set map to a classifier's outputs.

A classifier for ImageNet-1K has 1000 outputs in the order of the sorted WordNet ids ("wnids"). Its test sets come in
other layouts: ImageNet-V2 (arXiv 1902.10811) in folders named 0 to 999, ImageNet-A (1907.07174) and ImageNet-R
(2006.16241) with 200 of the classes each.
"""

import functools
import importlib.resources
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

MatchName = Literal["same names", "imagenet-1k", "imagenet-a", "imagenet-r", "imagenet-v2"]

_SAME_ORDER = 0.8
"""Share of names that agree, place by place, from which a list of 1000 names is ImageNet's: lists differ in wording."""


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1000 wnids of ImageNet-1K, in the order of a classifier's outputs."""
    return tuple(ImageNetInfo("imagenet-1k").label_names())


@functools.cache
def imagenet_descriptions() -> MappingProxyType[str, str]:
    """What the 1000 wnids mean, such as "tench, Tinca tinca". Not unique: two of them are "crane"."""
    info = ImageNetInfo("imagenet-1k")
    return MappingProxyType({wnid: info.label_name_to_description(wnid) for wnid in imagenet_classes()})


@functools.cache
def imagenet_subset(name: Literal["imagenet-a", "imagenet-r"]) -> tuple[str, ...]:
    """The 200 wnids of ImageNet-A or ImageNet-R, in the order of a classifier's outputs."""
    file = importlib.resources.files("timm.data") / "_info" / f"{name.replace('-', '_')}_synsets.txt"
    return tuple(file.read_text(encoding="utf-8").split())


@dataclass(frozen=True, eq=False)
class ClassMatch:
    """How the labels of a data set map to a classifier's outputs."""

    name: MatchName
    """How they were matched."""
    labels: Tensor
    """``(M,)`` int64: for each label of the data set, its place among the outputs that are kept."""
    subset: tuple[int, ...] | None
    """The outputs that are kept, ascending; None for all."""
    classes: tuple[str, ...]
    """Names of the outputs that are kept: the classifier's own, wnids where it tells none."""
    outputs: int
    """Outputs that the classifier has."""

    def restrict(self, logits: Tensor) -> Tensor:
        """Logits ``(..., outputs)`` of the outputs that are kept: ``(..., len(classes))``.

        Raises:
            ValueError: If the logits are of another classifier.
        """
        if logits.shape[-1] != self.outputs:
            raise ValueError(
                f"logits of {logits.shape[-1]} outputs, but the classes were matched to {self.outputs}; "
                "match them to this classifier's"
            )
        if self.subset is None:
            return logits
        return logits.index_select(-1, torch.tensor(self.subset, device=logits.device))

    def targets(self, labels: Tensor) -> Tensor:
        """Labels of the data set, of any shape, as places among the outputs that are kept.

        Raises:
            ValueError: If there is no such label.
        """
        outside = labels[(labels < 0) | (labels >= len(self.labels))]
        if outside.numel():
            raise ValueError(f"label {int(outside[0])} is none of the data's {len(self.labels)} classes, 0 and up")
        return self.labels.to(labels.device)[labels.long()]


def match_classes(
    folder_classes: Sequence[str], model_classes: Sequence[str] | int, *, restrict: bool | None = None
) -> ClassMatch:
    """Map the classes of a data set to a classifier's outputs, by what is known of both and never by guess.

    In this order:

    - All of the data's names are the classifier's too: by name, in whatever order, with whichever are missing.
    - The classifier has ImageNet's 1000 outputs, and the data's names are wnids of ImageNet or all its descriptions: by
      ImageNet's order. Such a classifier's names are wnids, or in ImageNet's order descriptions or numbers, or unknown.
    - The same with data named 0 to 999, the layout of ImageNet-V2: by number, though text sorts 10 before 2.

    Where the data's classes are exactly those of ImageNet-A or ImageNet-R, the classifier chooses among these 200 only,
    as in the published figures.

    Args:
        folder_classes: Names of the data's classes, in the order of its labels.
        model_classes: Names of the classifier's outputs, in their order; their number where no names are known.
        restrict: Keep only the outputs that the data has classes for. None: for ImageNet-A and ImageNet-R only.

    Raises:
        ValueError: If the classes cannot be matched for certain, or there are none.
    """
    folders = tuple(folder_classes)
    names = tuple(map(str, range(model_classes))) if isinstance(model_classes, int) else tuple(model_classes)
    if not folders:
        raise ValueError("the data has no classes; there is nothing to match")
    if not names:
        raise ValueError(f"model_classes={model_classes!r}: the classifier has no outputs; give their names or number")
    found = None if isinstance(model_classes, int) else _match_names(folders, names)
    name: MatchName = "same names"
    if found is None:
        found = _match_imagenet(folders, names)
        name = "imagenet-v2" if _is_numbered(folders) else "imagenet-1k"
    if found is None:
        raise ValueError(_refusal(folders, model_classes))
    for subset in ("imagenet-a", "imagenet-r"):
        if set(folders) == set(imagenet_subset(subset)):
            name = subset
    if restrict is None:
        restrict = name in ("imagenet-a", "imagenet-r")
    if isinstance(model_classes, int):
        names = imagenet_classes()
    kept = sorted(set(found))
    if not restrict or len(kept) == len(names):
        return ClassMatch(name, torch.tensor(found), None, names, len(names))
    rank = {output: index for index, output in enumerate(kept)}
    labels = torch.tensor([rank[output] for output in found])
    return ClassMatch(name, labels, tuple(kept), tuple(names[output] for output in kept), len(names))


def _match_names(folders: tuple[str, ...], names: tuple[str, ...]) -> list[int] | None:
    """The output of each folder by its name; None where not all are there."""
    if folders == names:  # names need not be unique where their order is the same
        return list(range(len(names)))
    place = {name: index for index, name in enumerate(names)}
    if not place.keys() >= set(folders):
        return None
    times = Counter(folders) | Counter(names)
    twice = [name for name in folders if times[name] > 1]
    if twice:
        raise ValueError(f"two classes are named {twice[0]!r}; give each a name of its own, in a classes file")
    return [place[name] for name in folders]


def _match_imagenet(folders: tuple[str, ...], names: tuple[str, ...]) -> list[int] | None:
    """The output of each folder by wnid; None where either side is not ImageNet's."""
    wnids, outputs = _wnids(folders), _wnids(names)
    if wnids is None or outputs is None or len(outputs) < len(imagenet_classes()):
        return None
    place = {wnid: index for index, wnid in enumerate(outputs)}
    return [place[wnid] for wnid in wnids]


def _wnids(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The wnids of ImageNet-1K that the names stand for; None where they are something else."""
    order = imagenet_classes()
    if len(set(names)) == len(names) and set(names) <= set(order):
        return names
    if len(names) != len(order):
        return None
    if _is_numbered(names):
        return tuple(order[int(name)] for name in names)
    agree = sum(
        _first_word(name) == _first_word(meaning)
        for name, meaning in zip(names, imagenet_descriptions().values(), strict=True)
    )
    return order if agree >= _SAME_ORDER * len(order) else None


def _is_numbered(names: tuple[str, ...]) -> bool:
    """Whether the names are the numbers 0 to 999, with leading zeros or without."""
    if not all(name.isascii() and name.isdecimal() for name in names):
        return False
    return sorted(map(int, names)) == list(range(1000))


def _first_word(description: str) -> str:
    """Of a class's synonyms the first: some lists tell only that."""
    return description.partition(",")[0].strip().casefold()


def _refusal(folders: tuple[str, ...], model_classes: Sequence[str] | int) -> str:
    mend = "give a classes file: the names of the data's folders, one a line, in the order of the classifier's outputs"
    outputs = model_classes if isinstance(model_classes, int) else len(model_classes)
    names = tuple(map(str, range(outputs))) if isinstance(model_classes, int) else tuple(model_classes)
    strange = [name for name in folders if name not in imagenet_descriptions()]
    if len(strange) < len(folders) and outputs == len(imagenet_classes()) and _wnids(names) is not None:
        return (
            f"{len(strange)} of the data's {len(folders)} folders ({_listed(strange)}) are none of ImageNet's classes; "
            f"move them elsewhere, or {mend}"
        )
    if isinstance(model_classes, int):
        return (
            f"the data's {len(folders)} classes ({_listed(folders)}) cannot be matched to {outputs} outputs "
            f"without names; {mend}"
        )
    known = set(names)
    missing = [name for name in folders if name not in known]
    return (
        f"{len(missing)} of the data's {len(folders)} classes ({_listed(missing)}) are none of the classifier's "
        f"{outputs} ({_listed(names)}); evaluate on the classes it was trained on, or {mend}"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown}, ..."
