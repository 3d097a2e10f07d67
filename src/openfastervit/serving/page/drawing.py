"""The picture of an answer, of a size that a browser is sent: boxes, masks, or the colours of classes."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openfastervit.inference.images_in_memory import Answer, Classes, Labels, Objects
from openfastervit.serving.page.subjects import Subject
from openfastervit.tasks.drawing import draw_detections, draw_labels

_LARGEST = 1600
"""Pixels of the longer side."""


def drawn(subject: Subject, image: Image.Image, answer: Answer) -> tuple[Image.Image, str] | None:
    """The picture, and what it shows in words; None of classes, which have no place in the image."""
    if isinstance(answer, Classes):
        return None
    scale = min(1.0, _LARGEST / max(image.size))
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    small = image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
    if isinstance(answer, Labels):
        labels = answer.labels if scale == 1 else _nearest(answer.labels, size)
        return draw_labels(small, labels, subject.model.classes), "The image with the colours of classes laid over it"
    output = _as_detected(answer, size, image.size)
    found = f"{len(answer.names)} object{'' if len(answer.names) == 1 else 's'}"
    return draw_detections(small, output, subject.model.classes, threshold=0.0), f"The image with {found} drawn in"


def _as_detected(answer: Objects, size: tuple[int, int], whole: tuple[int, int]) -> dict[str, Tensor]:
    """Objects as ``draw_detections`` takes them, in a smaller image."""
    scale = torch.tensor([size[0] / whole[0], size[1] / whole[1]] * 2)
    output = {
        "boxes": torch.as_tensor(answer.boxes, dtype=torch.float32).reshape(-1, 4) * scale,
        "labels": torch.tensor(answer.labels, dtype=torch.int64),
        "scores": torch.tensor(answer.scores, dtype=torch.float32),
    }
    if answer.masks is not None:
        masks = [mask if size == whole else _nearest(mask.astype(np.uint8), size).astype(bool) for mask in answer.masks]
        output["masks"] = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *size[::-1], dtype=torch.bool)
    return output


def _nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map at another size, (width, height)."""
    rows = (np.arange(size[1]) * values.shape[0]) // size[1]
    columns = (np.arange(size[0]) * values.shape[1]) // size[0]
    return np.asarray(values[rows][:, columns])
