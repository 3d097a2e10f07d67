"""Figures that others published: top-1 of networks, and the paper's images a second on its A100.

The two tables lie beside this file. ``published.csv`` holds what was read in the sources below, for networks trained on
ImageNet-1K alone, without another network for a teacher: that is how FasterViT-0 to -6 were trained. FasterViT's
networks that were pre-trained on ImageNet-21K are marked so, and compared with nothing trained on less.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

SOURCES: dict[str, str] = {
    "paper": "FasterViT: Fast Vision Transformers with Hierarchical Attention, arXiv 2306.06189, and its model cards",
    "timm": "timm, results/results-imagenet.csv at commit 7479d451a6dfd8af27f941b8e82a7402461fae80 of "
    "huggingface/pytorch-image-models",
    "mambaout": "timm's table of the MambaOut networks, release notes of October 2024 (not in the CSV above, which is "
    "older)",
}
"""Where each figure was read."""


@dataclass(frozen=True)
class Published:
    """Top-1 on ImageNet-1K's validation images, as somebody published it."""

    model: str
    """Of timm, or one of ours."""
    tag: str
    """Which weights."""
    size: int
    """Side of the images that it was measured at."""
    top1: float
    """In percent."""
    data: str
    """What the weights were trained on: ``ImageNet-1K``, or ``ImageNet-21K`` and then ImageNet-1K."""
    source: str
    """A key of ``SOURCES``."""


@dataclass(frozen=True)
class PaperSpeed:
    """A row of the paper's table: an A100, batches of 128. Nothing of it was measured here."""

    model: str
    """As the paper calls it."""
    top1: float
    images_per_second: float


@cache
def published_figures() -> tuple[Published, ...]:
    """All rows of ``published.csv``."""
    return tuple(
        Published(row["model"], row["tag"], int(row["size"]), float(row["top1"]), row["data"], row["source"])
        for row in _rows("published.csv")
    )


@cache
def paper_speeds() -> tuple[PaperSpeed, ...]:
    """All rows of ``paper_a100.csv``."""
    return tuple(
        PaperSpeed(row["model"], float(row["top1"]), float(row["images_per_second"])) for row in _rows("paper_a100.csv")
    )


def published_for(model: str, size: tuple[int, int]) -> Published | None:
    """A network's figure at the size nearest to ``size``; None if there is none here.

    Args:
        model: timm's or our name, perhaps with a tag (``resnet50.a1_in1k``): then for that tag alone.
        size: Height and width. The figure found tells its own size: it may be another.
    """
    name, _, tag = model.partition(".")
    figures = [figure for figure in published_figures() if figure.model == name and tag in ("", figure.tag)]
    return min(figures, key=lambda figure: _distance(figure.size, size), default=None)


def _distance(side: int, size: tuple[int, int]) -> tuple[int, int]:
    return abs(side - size[0]) + abs(side - size[1]), side


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
