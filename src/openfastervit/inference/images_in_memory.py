"""Images that are in memory, to answers: classes, objects or labels, by what a checkpoint was trained for.

A server and a page have images of people they do not know, so what a single one may cost is bounded here.
"""

import os
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openfastervit.data.images import ImageMode, to_eight_bits
from openfastervit.inference.closing import Closing
from openfastervit.inference.dense import checkpoint_file, task_of
from openfastervit.inference.dense_predictor import ImageDetector, ImageSegmenter, open_detector, open_segmenter
from openfastervit.inference.engines import Precision
from openfastervit.inference.exported import exported_task, is_exported
from openfastervit.inference.predictor import Predictor, check_numbers
from openfastervit.inference.preparation import Preparation
from openfastervit.tasks.detection.results import MASK_THRESHOLD

Task = Literal["classification", "detection", "segmentation"]

MAX_DENSE_PIXELS = 4_000_000
"""Larger images are made smaller before objects or labels are looked for, and the answer is made larger again: a mask
for each object, or a score for each class, is held for every pixel."""
MAX_DENSE_VALUES = 2**28
"""Of these masks or scores of an image, at most: 1 GiB in float32."""
_DETECTIONS = 100
Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class Classes:
    """The best classes of an image, best first."""

    names: tuple[str, ...]
    indices: tuple[int, ...]
    """Places of the classes in the logits: names need not be unique."""
    scores: tuple[float, ...]
    """Softmax probabilities."""


class Masks(Sequence[NDArray[np.bool_]]):
    """Masks of an image's objects, ``(H, W)`` each, of the image's size. Large ones are made when they are asked for.

    Args:
        masks: ``(N, h, w)``, as the network saw the image.
        size: Of the image.
    """

    def __init__(self, masks: NDArray[np.bool_], size: Size) -> None:
        self._masks, self._size = masks, size

    def __len__(self) -> int:
        return len(self._masks)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.bool_]: ...

    @overload
    def __getitem__(self, index: slice) -> "Masks": ...

    def __getitem__(self, index: int | slice) -> "NDArray[np.bool_] | Masks":
        if isinstance(index, slice):
            return Masks(self._masks[index], self._size)
        return _nearest(self._masks[index], self._size)

    def chosen(self, places: Sequence[int]) -> "Masks":
        """Some of them."""
        return Masks(self._masks[list(places)], self._size)


@dataclass(frozen=True)
class Objects:
    """What was found in an image, the best first. Coordinates are pixels of the image."""

    boxes: NDArray[np.float32]
    """``(N, 4)``: left, top, right, bottom."""
    labels: tuple[int, ...]
    """From 1 on, as the classes lie: label 1 is the first."""
    names: tuple[str, ...]
    scores: tuple[float, ...]
    masks: Masks | None
    """One an object; None where the network gives none."""


@dataclass(frozen=True)
class Labels:
    """The class of each pixel of an image."""

    labels: NDArray[Any]
    """``(H, W)``, of the image's size: places of the classes, in uint8, or in uint16 where there are more than 256."""


Answer = Classes | Objects | Labels


@dataclass(frozen=True)
class Prepared:
    """An image as a model takes it."""

    pixels: Tensor | Image.Image
    size: Size
    """Of the image as it was."""


@dataclass(frozen=True)
class Preparer:
    """From images to what ``Model.predict`` takes. It needs no network, and can be sent to another process."""

    mode: ImageMode
    """What images are best decoded to."""
    preparation: Preparation | None
    """Of a classifier."""
    max_pixels: int | None
    """Larger images are made smaller, of the others."""

    def __call__(self, image: Image.Image) -> Prepared:
        """Called from many threads.

        Raises:
            ImageError: If the image is too thin a strip to scale.
        """
        size = (image.height, image.width)
        upright = to_eight_bits(image, self.mode)
        if self.preparation is not None:
            return Prepared(self.preparation.pixels(upright), size)
        pixels = image.width * image.height
        if self.max_pixels is not None and pixels > self.max_pixels:
            scale = (self.max_pixels / pixels) ** 0.5
            small = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
            upright = upright.resize(small, Image.Resampling.BILINEAR, reducing_gap=2.0)
        return Prepared(upright, size)


class Model(Closing):
    """A trained network for images in memory. Threads may share one: they take turns.

    ``run`` does everything. ``prepare`` and ``predict`` are its two halves, for those who decode elsewhere.
    """

    task: Task
    classes: tuple[str, ...]
    engine_name: str
    """What runs the network."""
    prepare: Preparer

    def __init__(self) -> None:
        self._turn = threading.Lock()

    def run(self, images: Sequence[Image.Image], *, topk: int = 5, score_threshold: float = 0.3) -> list[Any]:
        """An ``Answer`` for each image, in order: ``Classes``, ``Objects`` or ``Labels``, by the task.

        Args:
            images: Upright, as ``open_image`` gives them.
            topk: Classes of a classifier's answer, all of them where there are fewer.
            score_threshold: Objects below it are left out.

        Raises:
            ImageError: If an image is too thin a strip to scale.
            ValueError: If a number is out of range, or the images do not fit in the device's memory.
        """
        return self.predict([self.prepare(image) for image in images], topk=topk, score_threshold=score_threshold)

    def predict(self, images: Sequence[Prepared], *, topk: int = 5, score_threshold: float = 0.3) -> list[Any]:
        """Answers for images that were prepared. See ``run``."""
        check_numbers(topk=topk)
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold={score_threshold} must be from 0 to 1")
        if not images:
            return []
        with self._turn:
            return list(self._predict(images, topk, score_threshold))

    @abstractmethod
    def _predict(self, images: Sequence[Prepared], topk: int, score_threshold: float) -> Sequence[Answer]: ...


def find_task(checkpoint: str | os.PathLike[str]) -> Task:
    """What a checkpoint, the best one of a run's folder, or an exported file was trained for.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read safely.
    """
    task = exported_task(checkpoint) if is_exported(checkpoint) else task_of(checkpoint_file(checkpoint))
    return cast(Task, task)


def open_model(
    checkpoint: str | os.PathLike[str],
    *,
    engine: str = "auto",
    precision: Precision = "fp32",
    device: str = "auto",
    batch_size: int = 8,
    img_size: Sequence[int] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Model:
    """A model from a checkpoint, the best one of a run's folder, or an exported file, whatever it was trained for.

    Args:
        checkpoint: The file or folder.
        engine: Of a classifier, as of ``Predictor.from_checkpoint``; detectors and segmenters run on torch, and
            exported ones on their own: "auto".
        precision: Of a classifier's engine; of the others "fp32".
        device: cpu, cuda, cuda:1; auto takes the best there is.
        batch_size: Images that a classifier's engine is made ready for; others work.
        img_size: Side, or height and width, that a classifier's images are scaled to; by default the checkpoint's.
        tell: Called with lines that say what "auto" measures.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read safely, or an option does not go with it.
    """
    path = checkpoint if is_exported(checkpoint) else checkpoint_file(checkpoint)
    task = find_task(path)
    if task == "classification":
        predictor = Predictor.from_checkpoint(
            path,
            img_size=img_size,
            device=device,
            engine=engine,
            precision=precision,
            batch_size=batch_size,
            tell=tell,
        )
        return _Classifier(predictor)
    given = {"engine": (engine, "auto"), "precision": (precision, "fp32"), "img_size": (img_size, None)}
    for name, (value, only) in given.items():
        if value != only and (name, value) != ("engine", _TORCH):
            raise ValueError(f"{path} was trained for {task}, which knows no {name}={value!r}; leave it out")
    if task == "detection":
        return _Detector(open_detector(path, device=device))
    return _Segmenter(open_segmenter(path, device=device))


_TORCH = "torch-eager"
_ENGINES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""Of exported detectors and segmenters, by format."""


class _Classifier(Model):
    task = "classification"

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self._predictor = predictor
        self.classes = predictor.classes
        self.engine_name = predictor.engine.name
        self.prepare = Preparer(predictor.preparation.mode, predictor.preparation, None)

    def _predict(self, images: Sequence[Prepared], topk: int, score_threshold: float) -> list[Classes]:
        pixels = [cast(Tensor, image.pixels) for image in images]
        found = self._predictor._classify(pixels, min(topk, len(self.classes)))
        return [
            Classes(tuple(self.classes[i] for i in indices), tuple(indices), tuple(scores)) for indices, scores in found
        ]

    def close(self) -> None:
        self._predictor.close()


class _Dense(Model):
    """What looks at one image after another."""

    def __init__(self, network: ImageDetector | ImageSegmenter, values: int) -> None:
        super().__init__()
        self.classes = network.classes
        file = getattr(network, "file", None)
        self.engine_name = _TORCH if file is None else _ENGINES[file.about.format]
        self.prepare = Preparer("RGB", None, min(MAX_DENSE_PIXELS, MAX_DENSE_VALUES // values))

    def close(self) -> None:
        pass


class _Detector(_Dense):
    task = "detection"

    def __init__(self, detector: ImageDetector) -> None:
        super().__init__(detector, _DETECTIONS)
        self._detector = detector

    def _predict(self, images: Sequence[Prepared], topk: int, score_threshold: float) -> list[Objects]:
        return [self._detect(cast(Image.Image, image.pixels), image.size, score_threshold) for image in images]

    def _detect(self, image: Image.Image, size: Size, score_threshold: float) -> Objects:
        found = self._detector.detect(image, score_threshold)
        finite = found["boxes"].isfinite().all(dim=1) & found["scores"].isfinite()  # others are no objects
        found = {name: value[finite].cpu() for name, value in found.items()}
        stretch = np.array([size[1] / image.width, size[0] / image.height] * 2, dtype=np.float32)
        labels = tuple(found["labels"].tolist())
        masks = found.get("masks")
        return Objects(
            found["boxes"].float().numpy() * stretch,
            labels,
            tuple(self.classes[label - 1] for label in labels),
            tuple(found["scores"].tolist()),
            None if masks is None else Masks((masks[:, 0] > MASK_THRESHOLD).numpy(), size),
        )


class _Segmenter(_Dense):
    task = "segmentation"

    def __init__(self, segmenter: ImageSegmenter) -> None:
        super().__init__(segmenter, len(segmenter.classes))
        self._segmenter = segmenter

    def _predict(self, images: Sequence[Prepared], topk: int, score_threshold: float) -> list[Labels]:
        found = [self._segmenter.segment(cast(Image.Image, image.pixels)) for image in images]
        return [Labels(_nearest(labels, image.size)) for labels, image in zip(found, images, strict=True)]


def _nearest(values: NDArray[Any], size: Size) -> NDArray[Any]:
    """Values ``(h, w)`` at another size, each the nearest one's."""
    if values.shape == size:
        return values
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(np.intp)
        for new, old in zip(size, values.shape, strict=True)
    )
    larger: NDArray[Any] = values[rows[:, None], columns]
    return larger


__all__ = [
    "MAX_DENSE_PIXELS",
    "MAX_DENSE_VALUES",
    "Answer",
    "Classes",
    "Labels",
    "Masks",
    "Model",
    "Objects",
    "Prepared",
    "Preparer",
    "Task",
    "find_task",
    "open_model",
]
