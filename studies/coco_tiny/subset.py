"""A few photographs of a data set in COCO's format, as one of their own."""

import json
import math
from pathlib import Path
from typing import Any


def largest_objects(content: dict[str, Any], count: int) -> list[int]:
    """Ids of the photographs whose smallest object takes the largest share of them, the best first.

    Only photographs with objects and without crowd regions: a network that learns sixteen photographs by heart is a
    test of the code, and objects of a few pixels would make it one of the pictures' size.
    """
    sizes = {image["id"]: image["width"] * image["height"] for image in content["images"]}
    smallest: dict[int, float] = {}
    for annotation in content["annotations"]:
        image = annotation["image_id"]
        share = 0.0 if annotation["iscrowd"] else annotation["bbox"][2] * annotation["bbox"][3] / sizes[image]
        smallest[image] = min(smallest.get(image, math.inf), share)
    return sorted(smallest, key=lambda image: (-smallest[image], image))[:count]


def write_subset(annotations: Path, out: Path, count: int) -> Path:
    """Write the annotations of ``count`` photographs with large objects; categories stay all."""
    content = json.loads(annotations.read_text(encoding="utf-8"))
    chosen = set(largest_objects(content, count))
    content["images"] = [image for image in content["images"] if image["id"] in chosen]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in chosen]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content), encoding="utf-8")
    return out
