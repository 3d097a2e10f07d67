"""What is served, and what is sent: a checkpoint, and JPEGs of its size."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

OPTIONS: dict[str, Any] = {"dim": 32, "depths": (1, 2, 2, 2), "num_classes": 1000}
"""Of fastervit_0: fast enough on one core for the cost of HTTP to show."""
SIZE = 224
IMAGES = 64


def make_checkpoint(path: Path, size: int) -> Path:
    """A small FasterViT with random weights: what it says means nothing, how long it takes does."""
    import torch

    import openfastervit

    torch.manual_seed(0)
    network = openfastervit.create_model("fastervit_0", img_size=size, **OPTIONS)
    colours = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bicubic"}
    metadata = {
        "model": "fastervit_0",
        "overrides": {**OPTIONS, "depths": list(OPTIONS["depths"]), "img_size": size},
        "classes": [f"class {index}" for index in range(OPTIONS["num_classes"])],
        "input": {"size": [3, size, size], "crop_pct": 1.0, **colours},
    }
    return openfastervit.save_checkpoint(network, path, metadata=metadata)


def size_of(checkpoint: Path) -> tuple[int, int]:
    """Height and width of the images that a network is asked about: a classifier's own; 224 squared for others."""
    from openfastervit.inference import load_classifier
    from openfastervit.inference.images_in_memory import find_task

    if find_task(checkpoint) != "classification" or checkpoint.suffix not in (".safetensors", ".pth", ".tar"):
        return SIZE, SIZE
    size = load_classifier(checkpoint).preparation["input_size"]
    return int(size[1]), int(size[2])


def write_images(folder: Path, size: tuple[int, int], count: int = IMAGES) -> list[Path]:
    """JPEGs with structure at two scales, which take about as many bytes as photographs do."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in range(count):
        draw = np.random.default_rng(seed)
        coarse, fine = (
            np.asarray(
                Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
                    (size[1], size[0]), Image.Resampling.BICUBIC
                ),
                dtype=np.float32,
            )
            for side in (7, max(8, size[0] // 3))
        )
        file = io.BytesIO()
        Image.fromarray((0.7 * coarse + 0.3 * fine).astype(np.uint8)).save(file, "JPEG", quality=85)
        path = folder / f"{seed}.jpg"
        path.write_bytes(file.getvalue())
        paths.append(path)
    return paths
