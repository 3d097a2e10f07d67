"""Detecting and segmenting images one by one: a checkpoint, or an exported file, behind one call."""

import os
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from openfastervit.inference.dense import Detector, Segmenter, checkpoint_file, load_detector, load_segmenter
from openfastervit.inference.exported import is_exported
from openfastervit.inference.predictor import find_device
from openfastervit.inference.segmenting import segment


class ImageDetector(Protocol):
    """What finds objects in an image."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    def detect(self, image: Image.Image, score_threshold: float = 0.05) -> dict[str, Tensor]:
        """Detections of torchvision's form, in the image's pixels, the best first."""


class ImageSegmenter(Protocol):
    """What tells the class of each pixel."""

    classes: tuple[str, ...]

    def segment(self, image: Image.Image) -> np.ndarray:
        """The number of each pixel's class ``(H, W)``, in uint8, or in uint16 where there are more than 256."""


class DetectionPredictor:
    """A detector of a checkpoint.

    Args:
        detector: As ``load_detector`` gives it.
        device: cpu, cuda, cuda:1; auto takes the best there is.
    """

    def __init__(self, detector: Detector, device: str = "auto") -> None:
        self.device = find_device(device)
        self.model = detector.model.to(self.device)
        self.classes, self.category_ids = detector.classes, detector.category_ids

    @torch.inference_mode()
    def detect(self, image: Image.Image, score_threshold: float = 0.05) -> dict[str, Tensor]:
        """Detections of torchvision's form, in the image's pixels, the best first."""
        pixels = transforms.to_dtype(transforms.pil_to_tensor(image), torch.float32, scale=True)
        found = self.model([pixels.to(self.device)])[0]
        return above({name: value.cpu() for name, value in found.items()}, score_threshold)


class SegmentationPredictor:
    """A segmenter of a checkpoint.

    Args:
        segmenter: As ``load_segmenter`` gives it.
        mode: Whole images at once, or windows that slide over them, as large as the crops of training.
        flip: Average over the image and its mirror image.
        scales: Average over these scales.
        eval_size: Short side that images are scaled to first; None for the checkpoint's.
        device: cpu, cuda, cuda:1; auto takes the best there is.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        mode: Literal["whole", "slide"] = "whole",
        flip: bool = False,
        scales: tuple[float, ...] = (1.0,),
        eval_size: int | None = None,
        device: str = "auto",
    ) -> None:
        self.device = find_device(device)
        self.model = segmenter.model.to(self.device)
        self.classes = segmenter.classes
        self._colours = (list(segmenter.mean), list(segmenter.std))
        self._side = eval_size or segmenter.eval_size
        crop = segmenter.crop_size
        self._options: dict[str, Any] = {
            "mode": mode,
            "flip": flip,
            "scales": scales,
            "crop": crop,
        }

    @torch.inference_mode()
    def segment(self, image: Image.Image) -> np.ndarray:
        """The number of each pixel's class ``(H, W)``."""
        scaled = image if self._side is None else transforms.resize(image, [self._side], antialias=True)
        pixels = transforms.to_dtype(transforms.pil_to_tensor(scaled), torch.float32, scale=True)
        pixels = transforms.normalize(pixels, *self._colours).to(self.device)
        return to_labels(segment(self.model, pixels, size=(image.height, image.width), **self._options))


def to_labels(scores: Tensor) -> np.ndarray:
    """The best class of each pixel ``(H, W)`` by scores ``(K, H, W)``."""
    labels: np.ndarray = scores.argmax(0).cpu().numpy()
    return labels.astype(np.uint8 if len(scores) <= 256 else np.uint16)


def above(found: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """The detections whose score is at least ``threshold``."""
    keep = found["scores"] >= threshold
    return {name: value[keep] for name, value in found.items()}


def open_detector(
    path: str | os.PathLike[str], *, min_size: int | None = None, max_size: int | None = None, device: str = "auto"
) -> ImageDetector:
    """What finds objects with a checkpoint, the best one of a run's folder, or an exported file.

    Raises:
        FileNotFoundError, CheckpointError: If it cannot be read, or is no detector.
        ValueError: If a size is out of range, or given for a file that has one.
    """
    if is_exported(Path(path)):
        from openfastervit.inference.dense_export import ExportedDetector

        if min_size is not None or max_size is not None:
            raise ValueError(f"{path} was exported for one size of images; leave --min-size and --max-size out")
        return ExportedDetector(Path(path), device=device)
    return DetectionPredictor(load_detector(checkpoint_file(path), min_size=min_size, max_size=max_size), device)


def open_segmenter(path: str | os.PathLike[str], *, device: str = "auto", **options: Any) -> ImageSegmenter:
    """What segments with a checkpoint, the best one of a run's folder, or an exported file.

    Args:
        path: The file or folder.
        device: As ``SegmentationPredictor`` takes it.
        **options: As ``SegmentationPredictor`` takes them; none but the defaults with exported files.

    Raises:
        FileNotFoundError, CheckpointError: If it cannot be read, or is no segmenter.
        ValueError: If an option is given that an exported file does not take.
    """
    if is_exported(Path(path)):
        from openfastervit.inference.dense_export import ExportedSegmenter

        plain = {"mode": "whole", "flip": False, "scales": (1.0,), "eval_size": None}
        changed = [name for name, value in options.items() if value != plain[name]]
        if changed:
            raise ValueError(f"{path} is an exported segmenter, which takes no {changed[0]}; use its checkpoint")
        return ExportedSegmenter(Path(path), device=device)
    return SegmentationPredictor(load_segmenter(checkpoint_file(path)), device=device, **options)
