"""Top-1 of checkpoints on corrupted images."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.datasets import ImageFolder

from openfastervit.inference import load_classifier
from studies.common.table import read_table, write_table
from studies.robustness.corruptions import STRENGTHS, corrupt

BATCH = 128
CASES: tuple[tuple[str, int, float], ...] = (
    ("none", 0, 0.0),
    *((kind, number + 1, value) for kind, values in STRENGTHS.items() for number, value in enumerate(values)),
)
"""Corruption, strength, what the strength is."""


def measure(
    checkpoints: Mapping[str, Path], data: Path, kept: Path, *, device: str, precision: str
) -> Iterator[dict[tuple[str, str, int], float]]:
    """Top-1 in percent by (checkpoint, corruption, strength): all so far, after each corruption and strength.

    Args:
        checkpoints: By name; all of the same classes and preparation of images.
        data: A folder of images, a folder a class.
        kept: A CSV of what was measured, of these very checkpoints; it is not measured again.
        device: Where.
        precision: bf16, or another for float32.

    Raises:
        ValueError: If a checkpoint's classes are not the folders of ``data``, or one prepares images otherwise.
    """
    read = {name: load_classifier(path) for name, path in checkpoints.items()}
    first = next(iter(read.values()))
    for name, classifier in read.items():
        if (classifier.preparation, classifier.classes) != (first.preparation, first.classes):
            raise ValueError(
                f"{checkpoints[name]} has other classes, or another preparation, than the other checkpoints"
            )
    # Values from 0 to 1, and the mean and deviation later: images are corrupted before they are normalised.
    transform = create_transform(**{**first.preparation, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    images = ImageFolder(str(data))
    if tuple(images.classes) != tuple(first.classes):
        raise ValueError(f"--data {data}: its folders are not the classes of {next(iter(checkpoints.values()))}")
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in checkpoints.items()}
    found: dict[tuple[str, str, int], float] = {}
    if kept.exists():
        for row in read_table(kept):
            if digests.get(row["checkpoint"]) == row["sha256"]:
                found[row["checkpoint"], row["corruption"], int(row["strength"])] = float(row["top1"])
    clean: list[Tensor] = []
    labels = torch.tensor(images.targets)
    for kind, strength, value in CASES:
        missing = {name: read[name].model for name in checkpoints if (name, kind, strength) not in found}
        if missing:
            if not clean:
                # As bytes: some hundred megabytes for thousands of small images.
                clean = [(255 * transform(image)).round().to(torch.uint8) for image, _ in images]
            right = _right(missing, clean, labels, kind, value, first.preparation, device, precision)
            for name, count in right.items():
                found[name, kind, strength] = 100 * count / len(labels)
            rows = [
                {
                    "checkpoint": key[0],
                    "sha256": digests[key[0]],
                    "corruption": key[1],
                    "strength": key[2],
                    "top1": top1,
                }
                for key, top1 in found.items()
            ]
            write_table(kept, rows)
        yield found


@torch.inference_mode()
def _right(
    networks: Mapping[str, torch.nn.Module],
    clean: Sequence[Tensor],
    labels: Tensor,
    kind: str,
    value: float,
    preparation: Mapping[str, Any],
    device: str,
    precision: str,
) -> dict[str, int]:
    """How many images each network classifies rightly."""
    mean, std = (torch.tensor(preparation[name], device=device).view(1, -1, 1, 1) for name in ("mean", "std"))
    right = dict.fromkeys(networks, 0)
    for network in networks.values():
        network.to(device)
    for start in range(0, len(clean), BATCH):
        chosen = [
            image if kind == "none" else corrupt(image, kind, value, start + number)
            for number, image in enumerate(clean[start : start + BATCH])
        ]
        batch = (torch.stack(chosen).to(device).float() / 255 - mean) / std
        batch = batch.contiguous(memory_format=torch.channels_last)
        wanted = labels[start : start + BATCH].to(device)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            for name, network in networks.items():
                right[name] += int((network(batch).argmax(1) == wanted).sum())
    return right
