"""Images on disk to predictions, in order, whatever some of the files are worth.

One straight line: a batch of paths -> pixels, in threads -> network -> one ``Prediction`` or ``Failure`` an image.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from openfastervit.data.images import ImageError, ImageMode, open_image
from openfastervit.inference.checkpoint import load_classifier

_MODES: dict[int, ImageMode] = {1: "L", 3: "RGB"}
_MAX_PIXELS = 89_000_000
"""Largest picture a transform may make on its way, the size that Pillow warns of."""


class Prediction(NamedTuple):
    """The best classes of an image, best first."""

    path: Path
    classes: tuple[str, ...]
    indices: tuple[int, ...]
    """Places of the classes in the logits: names need not be unique."""
    scores: tuple[float, ...]
    """Softmax probabilities."""


class Failure(NamedTuple):
    """An image that could not be read."""

    path: Path
    reason: str


class Predictor:
    """A classifier for images on disk.

    Args:
        model: Takes normalised images ``(B, C, H, W)``, gives logits ``(B, classes)``.
        classes: Names, in the order of the logits.
        transform: From a Pillow image, RGB or grayscale, to 8-bit pixels ``(C, H, W)`` as tensor or array, of one size.
        img_size: That size: height and width.
        mean: Of each channel, for pixels in 0 to 1: one is for grayscale, three are for RGB.
        std: Of each channel.
        device: Where the model runs; it is moved there.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        *,
        transform: Callable[[Image.Image], Any],
        img_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)
        self.classes = tuple(classes)
        self.transform = transform
        self.img_size = img_size
        self.mode = _MODES[len(mean)]
        self.mean = torch.tensor(mean, device=self.device).view(-1, 1, 1) * 255
        self.std = torch.tensor(std, device=self.device).view(-1, 1, 1) * 255

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        model: str | None = None,
        *,
        img_size: Sequence[int] | None = None,
        device: str = "auto",
    ) -> "Predictor":
        """A predictor from one file; ``load_classifier`` tells what it may hold, and what it raises.

        Args:
            path: A checkpoint.
            model: Name of the network, where the checkpoint does not tell it.
            img_size: Side or (height, width) that images are scaled to.
            device: "cpu", "cuda", "cuda:1", "mps"; "auto" for the best there is.

        Raises:
            ValueError: If the device is unknown or absent, or the network takes neither 1 nor 3 channels.
        """
        where = find_device(device)
        network, classes, preparation = load_classifier(path, model, img_size)
        channels = preparation["input_size"][0]
        if channels not in _MODES:
            raise ValueError(f"{path}: the network takes {channels} channels; images have 3, or 1 in grayscale")
        return cls(
            network,
            classes,
            # Whole batches are normalised at once, where the network runs.
            transform=create_transform(**preparation, is_training=False, normalize=False),
            img_size=preparation["input_size"][1:],
            mean=preparation["mean"],
            std=preparation["std"],
            device=where,
        )

    def predict(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        topk: int = 5,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> Generator[Prediction | Failure, None, None]:
        """Classify images, yielding one result for each, in order.

        Args:
            paths: Image files; read as they are needed, a batch at a time.
            topk: Classes a prediction, all of them where there are fewer.
            batch_size: Images the network takes at once.
            workers: Threads that decode: Pillow lets go of the interpreter while it decodes and scales. By default one
                for each processor, up to 8.

        Raises:
            ValueError: If a number is below 1, or a batch does not fit in the device's memory.
        """
        for name, number in (("topk", topk), ("batch_size", batch_size), ("workers", workers)):
            if number is not None and number < 1:
                raise ValueError(f"{name}={number} must be at least 1")
        topk = min(topk, len(self.classes))
        return self._predict(map(Path, paths), topk, batch_size, workers or min(os.cpu_count() or 1, 8))

    def _predict(
        self, paths: Iterator[Path], topk: int, batch_size: int, workers: int
    ) -> Generator[Prediction | Failure, None, None]:
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            while batch := list(islice(paths, batch_size)):
                loaded = list(pool.map(self._load, batch))
                images = [image for image in loaded if isinstance(image, Tensor)]
                rows = iter(self._classify(torch.stack(images), topk) if images else ())
                for path, image in zip(batch, loaded, strict=True):
                    if isinstance(image, ImageError):
                        yield Failure(path, str(image))
                    else:
                        scores, indices = next(rows)
                        yield Prediction(path, tuple(self.classes[i] for i in indices), tuple(indices), tuple(scores))

    def _load(self, path: Path) -> Tensor | ImageError:
        """Pixels ``(C, H, W)``, or why there are none."""
        try:
            image = open_image(path, self.mode)
        except ImageError as error:
            return error
        # Transforms scale the short side first: a thin strip of few pixels may grow to more than memory holds.
        scale = max(self.img_size) / min(image.size)
        if scale * image.width * scale * image.height > _MAX_PIXELS:
            return ImageError(f"{image.width} x {image.height} pixels are too thin a strip to scale")
        return torch.as_tensor(self.transform(image))

    @torch.inference_mode()
    def _classify(self, pixels: Tensor, topk: int) -> list[tuple[list[float], list[int]]]:
        """8-bit pixels ``(B, C, H, W)`` to scores and class indices, best first, for each image."""
        try:
            images = (pixels.to(self.device).float() - self.mean) / self.std
            probabilities = self.model(images).float().softmax(dim=-1)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"a batch of {len(pixels)} images does not fit in the memory of {self.device}; choose a smaller one"
            ) from error
        scores, indices = probabilities.topk(topk, dim=-1)
        return list(zip(scores.tolist(), indices.tolist(), strict=True))


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, then Apple's GPU, then the CPU.

    Raises:
        ValueError: If there is no such device here.
    """
    if name == "auto":
        accelerators = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return torch.device(next((kind for kind, present in accelerators.items() if present), "cpu"))
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's ways to say that there is none
        raise ValueError(f"device={name!r} is not to be had here; choose cpu, or auto for the best there is") from error
    return device
