"""Predicting with exported detectors and segmenters."""

import os

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes
from torchvision.transforms.v2 import functional as transforms

from openfastervit.inference.dense_file import DenseAbout, DenseFile, Size
from openfastervit.inference.dense_predictor import above, to_labels
from openfastervit.inference.engines.engine import EngineError


class ExportedDetector:
    """An exported detector. See ``ImageDetector``.

    Args:
        path: A file of ``fastervit export``.
        device: It runs on the CPU: "cpu", or "auto".

    Raises:
        FileNotFoundError, ExportedFileError, EngineError: As ``DenseFile`` does.
    """

    def __init__(self, path: str | os.PathLike[str], *, device: str = "auto") -> None:
        _check_device(path, device)
        self.file = DenseFile(path, "detection")
        about = self.file.about
        assert about.category_ids is not None
        self.classes, self.category_ids = about.classes, about.category_ids

    @torch.inference_mode()
    def detect(self, image: Image.Image, score_threshold: float = 0.05) -> dict[str, Tensor]:
        """Detections of torchvision's form, in the image's pixels, the best first."""
        pixels, size = fitted(image, self.file.about)
        outputs = self.file(images=pixels, size=torch.tensor(size))
        count = int(outputs.pop("count"))
        found = above({name: value[:count] for name, value in outputs.items()}, score_threshold)
        own = (image.height, image.width)
        found["boxes"] = resize_boxes(found["boxes"], size, own)
        if "masks" in found:
            found["masks"] = paste_masks_in_image(found["masks"][:, None], found["boxes"], own)
        return found


class ExportedSegmenter:
    """An exported segmenter. See ``ImageSegmenter``.

    Args:
        path: A file of ``fastervit export``.
        device: It runs on the CPU: "cpu", or "auto".

    Raises:
        FileNotFoundError, ExportedFileError, EngineError: As ``DenseFile`` does.
    """

    def __init__(self, path: str | os.PathLike[str], *, device: str = "auto") -> None:
        _check_device(path, device)
        self.file = DenseFile(path, "segmentation")
        self.classes = self.file.about.classes

    @torch.inference_mode()
    def segment(self, image: Image.Image) -> np.ndarray:
        """The number of each pixel's class ``(H, W)``."""
        pixels, _ = fitted(image, self.file.about)
        scores = self.file(images=pixels)["logits"]
        return to_labels(F.interpolate(scores, (image.height, image.width), mode="bilinear", align_corners=False)[0])


def _check_device(path: str | os.PathLike[str], device: str) -> None:
    if device not in ("auto", "cpu"):
        raise EngineError(f"{path} runs on the CPU here, not on {device!r}; choose cpu, or use its checkpoint")


def fitted(image: Image.Image, about: DenseAbout) -> tuple[Tensor, Size]:
    """An image as an exported file takes it.

    A detector's image is scaled as torchvision's ``GeneralizedRCNNTransform`` does it, a segmenter's as
    ``SegmentationPredictor`` does.

    Returns:
        ``(1, 3, *about.size)``, normalised, 0 where there is nothing; and height and width of the image in it.
    """
    if about.task == "segmentation":
        image = transforms.resize(image, list(about.size), antialias=True)
    pixels = transforms.to_dtype(transforms.pil_to_tensor(image), torch.float32, scale=True)
    pixels = transforms.normalize(pixels, list(about.mean), list(about.std))[None]
    size = about.size
    if about.resize == "fit":
        scale = min(about.size[0] / image.height, about.size[1] / image.width)
        size = (max(1, int(image.height * scale)), max(1, int(image.width * scale)))
    if about.task == "detection":
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
    return F.pad(pixels, (0, about.size[1] - size[1], 0, about.size[0] - size[0])), size


__all__ = ["ExportedDetector", "ExportedSegmenter", "fitted"]
