"""Inputs that fuzzing begins with: small whole files of all kinds, made here."""

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from studies.fuzzing.targets import header

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "ICO", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "AVIF")
MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "F", "LAB", "YCbCr")


def write_seeds(target: str, folder: Path) -> int:
    """Write those of a target into a folder; their number."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {"decoder": images, "checkpoint": checkpoints}[target]()
    for number, data in enumerate(seeds):
        (folder / f"seed-{number:03d}").write_bytes(data)
    return len(seeds)


def images() -> list[bytes]:
    """Small images, in each kind and mode that Pillow writes; some with EXIF, a profile, several frames."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for kind in KINDS:
        for mode in MODES:
            options: dict[str, Any] = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
            try:
                found.append(_written(_in_mode(picture, mode), kind, **options))
            except (OSError, ValueError, KeyError):  # no such image in this kind, or no such kind here
                continue
    frames = [picture.rotate(90 * number) for number in range(3)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        found.append(_written(frames[0], kind, save_all=True, append_images=frames[1:]))
    found.append(_written(picture, "JPEG", progressive=True))
    found.append(_written(picture, "PNG", icc_profile=b"\0" * 128))
    return found


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    if mode == "LAB":
        return Image.frombytes("LAB", picture.size, picture.tobytes())
    return picture.convert(mode)


def _written(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


class _Command:
    """Unpickling this would run a command."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, ("exit 0",)


def checkpoints() -> list[bytes]:
    """Files of torch, their pickles, headers of safetensors, and pickles that would run something."""
    weights = {"stem.conv1.weight": torch.zeros(2, 4), "head.fc.bias": torch.ones(3, dtype=torch.float16)}
    contents: list[Any] = [
        weights,
        {"state_dict": weights, "epoch": 3, "metric": np.float64(82.1)},
        {"model": {f"module.{name}": value for name, value in weights.items()}},
        {"stem.conv1.weight": torch.zeros(1).expand(100, 100)},
        {"a": torch.zeros(3).to_sparse()},
        {"state_dict": weights, "args": _Command()},
        [1, "two", (3.0, None), {"four": {5}}],
    ]
    found = []
    for content in contents:
        whole, old = io.BytesIO(), io.BytesIO()
        torch.save(content, whole)
        torch.save(content, old, _use_new_zipfile_serialization=False)
        with zipfile.ZipFile(whole) as opened:
            name = next(name for name in opened.namelist() if name.endswith("data.pkl"))
            found += [old.getvalue(), whole.getvalue(), opened.read(name)]
    found += [pickle.dumps(_Command(), protocol=protocol) for protocol in (2, 4)]
    told: dict[str, Any] = {
        "model": "fastervit_0",
        "overrides": {"dim": 8, "depths": [1, 1, 1, 1]},
        "classes": ["a", "b"],
        "input": {"size": [3, 64, 64], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "crop_pct": 0.9},
    }
    found += [header(), header(**told), header(**told, task="detection"), header(model="timm/resnet18")]
    return found
