"""Small pictures of coloured rectangles with annotations for detection and segmentation, drawn by the test itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("red", "green", "blue")
CATEGORY_IDS = (2, 5, 9)
COLOURS = ((220, 40, 40), (40, 200, 60), (50, 60, 220))
BACKBONE: dict[str, Any] = {"dim": 8, "stem_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
"""``model_options`` of a FasterViT that trains in seconds."""
RCNN: dict[str, Any] = {"fpn_channels": 16, "representation": 32, "mask_channels": 16, "box_samples": 32}
"""``head_options`` that go with it."""
UPERNET: dict[str, Any] = {"hidden_size": 16, "auxiliary_channels": 16}


def drawn(seed: int, size: tuple[int, int] = (96, 128), most: int = 3) -> tuple[Image.Image, list[dict[str, Any]]]:
    """A picture of ``size`` (height, width) on gray noise, and its rectangles: class, box xywh, area."""
    random = np.random.default_rng(seed)
    height, width = size
    pixels = random.integers(110, 140, (height, width, 3), dtype=np.uint8)
    shapes: list[dict[str, Any]] = []
    for _ in range(int(random.integers(1, most + 1))):
        w, h = (int(side) for side in random.integers(20, 45, 2))
        x, y = int(random.integers(0, width - w)), int(random.integers(0, height - h))
        kind = int(random.integers(len(CLASSES)))
        if any(
            x < s["box"][0] + s["box"][2]
            and s["box"][0] < x + w
            and y < s["box"][1] + s["box"][3]
            and s["box"][1] < y + h
            for s in shapes
        ):
            continue  # rectangles do not hide one another
        pixels[y : y + h, x : x + w] = COLOURS[kind]
        shapes.append({"kind": kind, "box": [x, y, w, h], "area": w * h})
    return Image.fromarray(pixels), shapes


def write_coco(folder: Path, *, train: int = 8, val: int = 4) -> Path:
    """A data set in COCO's layout."""
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": id, "name": name} for id, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
    for split, count, first in (("train", train, 0), ("val", val, 1000)):
        (folder / f"{split}2017").mkdir()
        images, annotations = [], []
        for number in range(first, first + count):
            picture, shapes = drawn(number)
            name = f"{number:012d}.png"
            picture.save(folder / f"{split}2017" / name)
            images.append({"id": number + 1, "file_name": name, "width": picture.width, "height": picture.height})
            for shape in shapes:
                x, y, w, h = shape["box"]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": CATEGORY_IDS[shape["kind"]],
                        "bbox": shape["box"],
                        "area": shape["area"],
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return folder


def write_semantic(folder: Path, *, train: int = 8, val: int = 4, test: int = 0) -> Path:
    """Images and index PNGs: 0 is the background, 1 to 3 the colours; the lowest row is ignored."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(("ground", *CLASSES)) + "\n")
    splits = (("train", train, 0), ("val", val, 1000), ("test", test, 2000))
    for split, count, first in splits[: 3 if test else 2]:
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(first, first + count):
            picture, shapes = drawn(number)
            labels = np.zeros((picture.height, picture.width), np.uint8)
            for shape in shapes:
                x, y, w, h = shape["box"]
                labels[y : y + h, x : x + w] = shape["kind"] + 1
            labels[-1] = 255
            picture.save(folder / "images" / split / f"{number}.png")
            Image.fromarray(labels).save(folder / "labels" / split / f"{number}.png")
    return folder
