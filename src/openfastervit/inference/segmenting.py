"""Semantic segmentation of an image of any size: whole or by sliding windows, at several scales, mirrored."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Mode = Literal["whole", "slide"]


@torch.no_grad()
def segment(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    mode: Mode = "whole",
    crop: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
) -> Tensor:
    """The probability of each class for each pixel.

    Scores of the whole image, or the mean of those of all windows that see a pixel, are scaled to the size that is
    asked for (bilinear) and become probabilities by a softmax; these are averaged over scales and mirror images, as
    mmsegmentation does.

    Args:
        network: From images ``(B, 3, h, w)``, normalised, to scores ``(B, K, h, w)``, in evaluation mode.
        image: ``(3, H, W)``, normalised, where the network is.
        mode: "whole" for all of the image at once, "slide" for windows.
        crop: Height and width of the windows; images that are smaller are padded on the right and below with 0, the
            mean. Needed for "slide".
        stride: From one window to the next, down and to the right: at most ``crop``; by default two thirds of it. The
            last windows lie at the border, so that none reaches beyond.
        scales: Factors by which the image is scaled before.
        flip: Whether to look at mirror images too.
        size: Height and width of what is returned; the image's by default.
        batch_size: Windows that the network sees at once.

    Returns:
        ``(K, *size)`` float32 (float64 where the scores are).

    Raises:
        ValueError: If an argument is out of range, the network is in training mode, or its scores are not as said.
    """
    if image.ndim != 3 or not image.is_floating_point():
        raise ValueError(
            f"image of shape {list(image.shape)} and type {image.dtype} is not (3, H, W), normalised; give one image"
        )
    if mode not in ("whole", "slide"):
        raise ValueError(f"mode={mode!r} must be 'whole' or 'slide'")
    if getattr(network, "training", False):
        raise ValueError("the network is in training mode; call its eval() before")
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales={scales!r} must be one number above 0 or more")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if mode == "slide":
        crop, stride = _checked(crop, stride)
    height, width = image.shape[1:]
    size = (height, width) if size is None else size
    total: Tensor | None = None
    for scale in scales:
        scaled = _resized(image, (max(1, round(height * scale)), max(1, round(width * scale))))
        for mirrored in (False, True) if flip else (False,):
            seen = scaled.flip(-1) if mirrored else scaled
            if mode == "slide":
                assert crop is not None
                assert stride is not None
                scores = _slide(network, seen, crop, stride, batch_size)
            else:
                scores = _scores(network, seen[None])[0]
            if mirrored:
                scores = scores.flip(-1)
            if tuple(scores.shape[1:]) != tuple(size):
                scores = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
            probabilities = scores.softmax(dim=0)
            del scores
            total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total.div_(len(scales) * (2 if flip else 1))


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where windows begin that cover ``length`` pixels, each at most ``stride`` after the one before.

    All lie inside, the last one at the end; there is one, at 0, where the image is no longer than a window.
    """
    last = max(0, length - crop)
    return [*range(0, last, stride), last]


def _slide(
    network: Callable[[Tensor], Tensor], image: Tensor, crop: tuple[int, int], stride: tuple[int, int], batch_size: int
) -> Tensor:
    """``(K, H, W)``: the mean of the scores of all windows that see a pixel."""
    height, width = image.shape[1:]
    image = F.pad(image, (0, max(0, crop[1] - width), 0, max(0, crop[0] - height)))
    total: Tensor | None = None
    times = image.new_zeros(image.shape[1:])
    windows_at = list(_places(image, crop, stride))
    for start in range(0, len(windows_at), batch_size):
        places = windows_at[start : start + batch_size]
        windows = torch.stack([image[:, rows, columns] for rows, columns in places])
        for (rows, columns), scores in zip(places, _scores(network, windows), strict=True):
            if total is None:
                total = scores.new_zeros(len(scores), *image.shape[1:])
            total[:, rows, columns] += scores
            times[rows, columns] += 1
    assert total is not None  # there is one window at least
    return total.div_(times)[:, :height, :width]


def _places(image: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each window."""
    for top in window_starts(image.shape[1], crop[0], stride[0]):
        for left in window_starts(image.shape[2], crop[1], stride[1]):
            yield slice(top, top + crop[0]), slice(left, left + crop[1])


def _scores(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """``(B, K, h, w)``, float32 at least, of the size of the images."""
    scores = network(images)
    if scores.ndim != 4 or len(scores) != len(images) or scores.shape[2:] != images.shape[2:]:
        raise ValueError(
            f"the network's scores of shape {list(scores.shape)} do not fit images of {list(images.shape)}; "
            "it must give (B, K, h, w), at the size of the images"
        )
    return scores if scores.dtype == torch.float64 else scores.float()


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """As images are scaled for training: bilinear, smoothed where it makes them smaller."""
    if tuple(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def _checked(crop: tuple[int, int] | None, stride: tuple[int, int] | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """Both, or why they cannot be."""
    if crop is None:
        raise ValueError("crop is not given: mode='slide' needs height and width of its windows")
    if len(crop) != 2 or min(crop) < 1:
        raise ValueError(f"crop={crop} must be height and width, both at least 1")
    if stride is None:
        stride = (max(1, crop[0] * 2 // 3), max(1, crop[1] * 2 // 3))
    if len(stride) != 2 or min(stride) < 1 or stride[0] > crop[0] or stride[1] > crop[1]:
        raise ValueError(f"stride={stride} must be at least 1 and at most crop={crop}, so that no pixel is left out")
    return crop, stride


__all__ = ["Mode", "segment", "window_starts"]
