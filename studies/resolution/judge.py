"""Accuracy as images grow: networks trained at one size, judged at others."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

from openfastervit.inference import load_classifier
from studies.common.outcome import RESULT
from studies.common.table import write_table
from studies.imagenette.networks import IMAGE_SIZE

ACCURACY = "accuracy.csv"
SIDES = (96, 128, 160, 192, 224, 320)
EVERY = 4
"""Of the validation images one in so many is judged; their order goes by class, so all are there alike."""
BATCH = 64


def judge(runs: Path, images: Path, out: Path, facts: Mapping[str, Any], *, smoke: bool) -> Path:
    """Top-1 of the network that each run left at each size; images are scaled to it, and cut to a square.

    Args:
        runs: Folders ``DESIGN-seedN`` with what a run left.
        images: A folder of images, a folder a class.
        out: Where the table goes.
        facts: Of the machine and the command; in each row.
        smoke: The first two sizes alone.

    Raises:
        ValueError: If there is no run, or a network's classes are not the folders.
    """
    found = sorted(runs.glob(f"*-seed*/{RESULT}"))
    if not found:
        raise ValueError(f"--runs {runs}: no run in it has a {RESULT}; studies.attention_designs leaves them")
    rows: list[dict[str, Any]] = []
    for checkpoint in found:
        design, _, seed = checkpoint.parent.name.rpartition("-seed")
        classifier = load_classifier(checkpoint)
        for side in SIDES[: 2 if smoke else None]:
            size = (classifier.preparation["input_size"][0], side, side)
            folder = ImageFolder(str(images), create_transform(**{**classifier.preparation, "input_size": size}))
            if tuple(folder.classes) != tuple(classifier.classes):
                raise ValueError(f"{images}: its folders are not the classes of {checkpoint}")
            chosen = Subset(folder, range(0, len(folder), EVERY))
            right = sum(
                int((logits.argmax(1) == labels).sum()) for logits, labels in _answers(classifier.model, chosen)
            )
            cell = {"attention": design, "seed": seed, "side": side, "trained_at": IMAGE_SIZE, "images": len(chosen)}
            rows.append({**cell, "top1": f"{100 * right / len(chosen):.2f}", **facts})
        write_table(out / ACCURACY, rows)
    return out / ACCURACY


@torch.inference_mode()
def _answers(model: torch.nn.Module, images: Subset[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch, labels in DataLoader(images, batch_size=BATCH):
        yield model(batch.contiguous(memory_format=torch.channels_last)), labels
