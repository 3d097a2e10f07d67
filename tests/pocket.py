"""A network that fits in a pocket, its checkpoints, and images for it."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openfastervit import FasterViT, save_checkpoint
from tests.networks import tiny

OPTIONS: dict[str, Any] = {
    "dim": 8,
    "stem_dim": 8,
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 1, 2, 4),
    "num_classes": 3,
    "img_size": 64,
    "window_sizes": (7, 7, 2, 2),
}
TRAINED: dict[str, Any] = {
    "depths": [1, 1, 1, 1],
    "dim": 8,
    "stem_dim": 8,
    "num_heads": [1, 1, 2, 2],
    "window_sizes": [4, 4, 2, 2],
}
"""``model_options`` of recipes for training runs that take seconds."""
CLASSES = ["ant", "bee", "cat"]
INPUT = {
    "size": [3, 64, 64],
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bicubic",
    "crop_pct": 0.9,
}
METADATA: dict[str, Any] = {"model": "fastervit_0", "overrides": OPTIONS, "classes": CLASSES, "input": INPUT}


def pocket(**overrides: Any) -> FasterViT:
    """The network, in evaluation mode."""
    return tiny(**{**OPTIONS, **overrides}).eval()


def write_checkpoint(path: Path, network: FasterViT | None = None, /, **metadata: Any) -> Path:
    """A checkpoint that tells all that ``fastervit predict`` wants to know, but for what ``metadata`` changes."""
    return save_checkpoint(pocket() if network is None else network, path, metadata={**METADATA, **metadata})


def picture(seed: int = 0, size: tuple[int, int] = (100, 80), mode: str = "RGB") -> Image.Image:
    """A reproducible picture with coarse structure, so that scaling keeps something of it."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def write_photos(folder: Path, count: int = 5) -> list[Path]:
    """Pictures in a folder and a subfolder, in the order ``fastervit predict`` takes them."""
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(count - 1)] + [folder / "sub" / "last one.jpg"]
    for i, path in enumerate(paths):
        picture(i, size=(70 + 9 * i, 90 - 5 * i)).save(path)
    return paths


def write_broken(path: Path, suffix_of: str = "png") -> Path:
    """The first half of an image file."""
    whole = path.with_name(f"whole.{suffix_of}")
    picture(9).save(whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()
    return path
