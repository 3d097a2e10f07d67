"""Handwritten digits: real scans, split once and for all, enlarged, and shaken for training."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from openfastervit.demo.network import INPUT

HELD_OUT = 360
"""Images that training never sees."""
SPLIT_SEED = 0
"""The split is the same whatever the run's seed, so that runs can be compared."""

# How far a training image is moved, at most. A digit stays the digit that it is.
TURN = 12.0  # degrees
SHIFT = 0.08  # of the image's side
SCALE = 0.1
SHEAR = 0.1


@dataclass(frozen=True)
class Digits:
    """Scans of handwritten digits and a stratified split of them."""

    scans: NDArray[np.uint8]
    """``(n, 8, 8)``: 0 is paper, 255 is ink."""
    labels: NDArray[np.int64]
    """``(n,)``: the digit that was meant."""
    training: NDArray[np.int64]
    """Indices of the images to train on."""
    held_out: NDArray[np.int64]
    """Indices of the others, in random order."""


def load() -> Digits:
    """scikit-learn's 1797 digits, which come with the package: nothing is downloaded.

    Raises:
        ValueError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise ValueError("the demo needs scikit-learn: pip install 'openfastervit[demo]'") from error
    source = load_digits()
    labels = source.target.astype(np.int64)
    training, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=SPLIT_SEED
    )
    scans = np.round(source.images * (255 / 16)).astype(np.uint8)
    return Digits(scans, labels, training, held_out)


def prepare(scans: NDArray[np.uint8]) -> Tensor:
    """Images ``(n, 1, H, W)`` from scans, by the very steps that ``fastervit predict`` takes with a PNG file."""
    transform = create_transform(
        tuple(INPUT["size"]),
        is_training=False,
        interpolation=INPUT["interpolation"],
        mean=tuple(INPUT["mean"]),
        std=tuple(INPUT["std"]),
        crop_pct=INPUT["crop_pct"],
        crop_mode=INPUT["crop_mode"],
    )
    return torch.stack([transform(Image.fromarray(scan)) for scan in scans])


def shake(images: Tensor) -> Tensor:
    """Turn, shift, scale and shear each of ``(B, 1, H, W)`` a little, at random; what comes into view is paper."""
    batch = images.shape[0]

    def draw(most: float) -> Tensor:
        return (2 * torch.rand(batch) - 1) * most

    angle, scale = draw(math.radians(TURN)), 1 + draw(SCALE)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # affine_grid wants the map from output to input coordinates, both in [-1, 1]: twice a share of the side.
    rows = [cos, draw(SHEAR) - sin, draw(2 * SHIFT), sin, cos, draw(2 * SHIFT)]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(batch, 2, 3), list(images.shape), align_corners=False)
    paper = -INPUT["mean"][0] / INPUT["std"][0]
    return F.grid_sample(images - paper, grid, align_corners=False) + paper
