"""Images made ready together with what is known of them: label maps, boxes, masks.

All random numbers are drawn from torch's global generator, which the loader seeds for each sample.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import ColorJitter, InterpolationMode, RandomCrop
from torchvision.transforms.v2 import functional as F

from openfastervit.data.label_maps import IGNORE

_TRIES = 10
_PER_OBJECT = ("labels", "iscrowd", "area")
_GRAY = 128
"""What pads an image before it is normalised: close to the mean of photographs."""


class SegmentationTraining:
    """Scales, crops, flips and recolours an image, and its label map with it, as mmsegmentation does.

    The image is scaled by a factor drawn evenly from ``scale``, and a crop is drawn from it. One in which a single
    class fills too much is drawn again, up to 10 times. Then come the flip, the colours and the normalisation. What is
    smaller than the crop is padded on the right and below: the image with its mean, labels with 255.

    Args:
        crop: Height and width of what comes out.
        scale: Least and most.
        size: The short side, in pixels, that a scale of 1 gives the image; its own by default.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength: contrast and saturation change by up to this share, brightness by half of it, the hue
            by a fifth of it, in turns. 0.5 is as strong as mmsegmentation's.
        mean: Of each channel, of values from 0 to 1.
        std: The same.
        max_category_share: The most that one class may fill of a crop, of what is not ignored; 1 for any.
        interpolation: How the image is scaled; labels take the nearest.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        crop: tuple[int, int],
        *,
        scale: tuple[float, float] = (0.5, 2.0),
        size: int | None = None,
        hflip: float = 0.5,
        color_jitter: float = 0.5,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        max_category_share: float = 0.75,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    ) -> None:
        _check_pair("crop", crop)
        _check_range("scale", scale)
        if size is not None and size < 1:
            raise ValueError(f"size={size} must be at least 1")
        _check_probability("hflip", hflip)
        if not 0 < max_category_share <= 1:
            raise ValueError(f"max_category_share={max_category_share} must be above 0, at most 1")
        self.crop, self.scale, self.size, self.hflip = crop, scale, size, hflip
        self.colours = _colours(color_jitter)
        self.mean, self.std = list(mean), list(std)
        self.max_category_share = max_category_share
        self.interpolation = interpolation

    def __call__(self, image: Image.Image, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        """An image and a label map ``(H, W)``, to ``(3, *crop)`` float, normalised, and ``(*crop)`` int64."""
        pixels, classes = _as_tensors(image, labels)
        factor = _uniform(*self.scale)
        height, width = _scaled(pixels, factor if self.size is None else factor * self.size / min(pixels.shape[-2:]))
        classes = F.resize(classes, [height, width], InterpolationMode.NEAREST_EXACT)
        pixels = F.resize(pixels, [height, width], self.interpolation, antialias=True)

        crop = [min(height, self.crop[0]), min(width, self.crop[1])]
        top, left = self._place(classes, crop)
        pixels, classes = (F.crop(value, top, left, *crop) for value in (pixels, classes))
        if torch.rand(()) < self.hflip:
            pixels, classes = F.horizontal_flip(pixels), F.horizontal_flip(classes)
        if self.colours is not None:
            pixels = self.colours(pixels)
        padding = [0, 0, self.crop[1] - crop[1], self.crop[0] - crop[0]]
        pixels = F.pad(_normalised(pixels, self.mean, self.std), padding, fill=0)
        return pixels, F.pad(classes, padding, fill=IGNORE)[0].long()

    def _place(self, labels: Tensor, crop: Sequence[int]) -> tuple[int, int]:
        """Where the crop begins: top and left."""
        for _ in range(_TRIES):
            top, left = (int(torch.randint(labels.shape[i] - crop[i - 1] + 1, ())) for i in (1, 2))
            if self.max_category_share == 1:
                break
            inside = labels[0, top : top + crop[0], left : left + crop[1]]
            counts = torch.bincount(inside.reshape(-1), minlength=IGNORE + 1)
            counts[IGNORE] = 0
            if int((counts > 0).sum()) > 1 and int(counts.max()) < self.max_category_share * int(counts.sum()):
                break
        return top, left


class SegmentationEvaluation:
    """An image, normalised and perhaps scaled, and its label map as it is.

    Args:
        size: Its short side, in pixels; its own by default.
        mean: Of each channel, of values from 0 to 1.
        std: The same.

    Raises:
        ValueError: If the size is below 1.
    """

    def __init__(
        self,
        size: int | None = None,
        *,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        if size is not None and size < 1:
            raise ValueError(f"size={size} must be at least 1")
        self.size = size
        self.mean, self.std = list(mean), list(std)

    def image(self, image: Image.Image) -> Tensor:
        """``(3, H', W')`` float, normalised."""
        pixels = F.pil_to_tensor(image)
        if self.size is not None:
            height, width = _scaled(pixels, self.size / min(pixels.shape[-2:]))
            pixels = F.resize(pixels, [height, width], InterpolationMode.BILINEAR, antialias=True)
        return _normalised(pixels, self.mean, self.std)

    def __call__(self, image: Image.Image, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        """An image and a label map ``(H, W)``, to ``(3, H', W')`` float, normalised, and ``(H, W)`` int64."""
        _, classes = _as_tensors(image, labels)
        return self.image(image), classes[0].long()


class DetectionTraining:
    """Flips and recolours an image, and the boxes and masks on it with it; large-scale jitter where it is asked for.

    Scaling to the sizes that a detector sees, and normalisation, are the detector's.

    Args:
        hflip: Probability of a horizontal flip.
        color_jitter: Strength; see ``SegmentationTraining``.
        scale_jitter: Least and most of a factor, drawn evenly, for the image after it was scaled to fit into
            ``canvas``; then a crop of ``canvas`` is drawn from it, or it is padded to that. (0.1, 2.0) is large-scale
            jitter, (0.8, 1.25) standard (Ghiasi et al., arXiv 2012.07177). Boxes are fitted again to what is left of
            their masks, where there are masks; objects of which less than a pixel is left are dropped. None for none.
        canvas: Height and width.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        *,
        hflip: float = 0.5,
        color_jitter: float = 0.0,
        scale_jitter: tuple[float, float] | None = None,
        canvas: tuple[int, int] = (1024, 1024),
    ) -> None:
        _check_probability("hflip", hflip)
        if scale_jitter is not None:
            _check_range("scale_jitter", scale_jitter)
        _check_pair("canvas", canvas)
        self.hflip, self.scale_jitter, self.canvas = hflip, scale_jitter, canvas
        self.colours = _colours(color_jitter)
        self._to_canvas = RandomCrop(canvas, pad_if_needed=True, fill={tv_tensors.Image: _GRAY, "others": 0})

    def __call__(self, image: Image.Image, target: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """An image with its objects, to one ``(3, H, W)`` from 0 to 1 with its objects.

        Args:
            image: RGB.
            target: ``boxes`` (N, 4), left, top, right and bottom in pixels; perhaps ``masks`` (N, H, W), and
                ``labels``, ``iscrowd`` and ``area`` (N,). What else is in it is passed on. It is left as it is.
        """
        pixels = tv_tensors.Image(F.pil_to_tensor(image))
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        shapes: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(target["boxes"].reshape(-1, 4), format="XYXY", canvas_size=size)
        }
        if "masks" in target:
            if tuple(target["masks"].shape[-2:]) != size:
                raise ValueError(
                    f"masks of shape {list(target['masks'].shape)} do not fit an image of {list(size)}; give all the "
                    "size of the image"
                )
            shapes["masks"] = tv_tensors.Mask(target["masks"])
        rest = {name: value for name, value in target.items() if name not in shapes}
        if self.scale_jitter is not None:
            pixels, shapes, kept = self._jitter(pixels, shapes)
            rest = {name: value[kept] if name in _PER_OBJECT else value for name, value in rest.items()}
            if "area" in rest:
                rest["area"] = _areas(shapes).to(rest["area"].dtype)
        if torch.rand(()) < self.hflip:
            pixels = F.horizontal_flip(pixels)
            shapes = {name: F.horizontal_flip(value) for name, value in shapes.items()}
        if self.colours is not None:
            pixels = self.colours(pixels)
        plain = {name: value.as_subclass(Tensor) for name, value in shapes.items()}
        return F.to_dtype(pixels, torch.float32, scale=True).as_subclass(Tensor), {**rest, **plain}

    def _jitter(
        self, pixels: tv_tensors.Image, shapes: dict[str, Any]
    ) -> tuple[tv_tensors.Image, dict[str, Any], Tensor]:
        """Scaled, and cropped or padded to the canvas; and which objects are left, ``(N,)``."""
        assert self.scale_jitter is not None
        fit = min(self.canvas[0] / pixels.shape[-2], self.canvas[1] / pixels.shape[-1])
        size = list(_scaled(pixels, fit * _uniform(*self.scale_jitter)))
        pixels = F.resize(pixels, size, antialias=True)
        shapes = {name: F.resize(value, size, InterpolationMode.NEAREST_EXACT) for name, value in shapes.items()}
        pixels, shapes = self._to_canvas(pixels, shapes)
        boxes = shapes["boxes"].as_subclass(Tensor)
        if "masks" in shapes:
            masks = shapes["masks"].as_subclass(Tensor)
            kept = (masks != 0).flatten(1).any(dim=1)
            fitted = masks_to_boxes(masks[kept])
            fitted[:, 2:] += 1  # they end at the last pixel's far side
            boxes = fitted.to(boxes.dtype)
            shapes["masks"] = tv_tensors.Mask(masks[kept])
        else:
            kept = (boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)
            boxes = boxes[kept]
        shapes["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=self.canvas)
        return pixels, shapes, kept


class DetectionEvaluation:
    """An image ``(3, H, W)`` from 0 to 1, and what is known of it as it is."""

    def __call__(self, image: Image.Image, target: Any) -> tuple[Tensor, Any]:
        return F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True), target


def _as_tensors(image: Image.Image, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """``(3, H, W)`` and ``(1, H, W)``, both uint8."""
    if labels.shape != (image.height, image.width):
        raise ValueError(
            f"labels of shape {list(labels.shape)} do not fit an image of {[image.height, image.width]}; give both the "
            "same height and width"
        )
    return F.pil_to_tensor(image), torch.from_numpy(labels.astype(np.uint8))[None]


def _scaled(pixels: Tensor, factor: float) -> tuple[int, int]:
    """Height and width of an image after scaling."""
    height, width = (max(1, round(side * factor)) for side in pixels.shape[-2:])
    return height, width


def _normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return cast(Tensor, F.normalize(F.to_dtype(pixels, torch.float32, scale=True), list(mean), list(std)))


def _colours(strength: float) -> ColorJitter | None:
    if strength < 0:
        raise ValueError(f"color_jitter={strength} must be at least 0")
    if strength == 0:
        return None
    return ColorJitter(strength / 2, strength, strength, min(strength / 5, 0.5))


def _areas(shapes: Mapping[str, Any]) -> Tensor:
    """``(N,)``, in pixels: of the masks, or else of the boxes."""
    if "masks" in shapes:
        return shapes["masks"].as_subclass(Tensor).flatten(1).count_nonzero(dim=1)
    left, top, right, bottom = shapes["boxes"].as_subclass(Tensor).unbind(dim=1)
    return (right - left) * (bottom - top)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), dtype=torch.float64))


def _check_pair(name: str, value: Sequence[int]) -> None:
    if len(value) != 2 or min(value) < 1:
        raise ValueError(f"{name}={value} must be height and width, both at least 1")


def _check_range(name: str, value: Sequence[float]) -> None:
    if len(value) != 2 or not 0 < value[0] <= value[1]:
        raise ValueError(f"{name}={value} must be two numbers above 0, the smaller first")


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie between 0 and 1")


__all__ = ["DetectionEvaluation", "DetectionTraining", "SegmentationEvaluation", "SegmentationTraining"]
