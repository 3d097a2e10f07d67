"""Images on disk to predictions, in order, whatever some of the files are worth.

One straight line: a batch of paths -> pixels, in threads -> engine -> one ``Prediction`` or ``Failure`` an image.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openfastervit.data.images import ImageError
from openfastervit.inference.checkpoint import load_classifier
from openfastervit.inference.closing import Closing
from openfastervit.inference.engines import Engine, Precision, Settings, auto_engine, create_engine
from openfastervit.inference.exported import is_exported, load_exported, read_about
from openfastervit.inference.pipeline import overlapped
from openfastervit.inference.preparation import Preparation

CALIBRATION_IMAGES = 300
"""Images that int8 takes its ranges from, where there are as many."""


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


class Predictor(Closing):
    """A classifier for images on disk.

    Args:
        engine: From normalised images ``(B, C, H, W)`` to logits ``(B, classes)``; ``close`` closes it.
        classes: Names, in the order of the logits.
        preparation: From images on disk to the engine's.
    """

    def __init__(self, engine: Engine, classes: Sequence[str], preparation: Preparation) -> None:
        self.engine = engine
        self.classes = tuple(classes)
        self.preparation = preparation

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        model: str | None = None,
        *,
        img_size: Sequence[int] | None = None,
        device: str = "auto",
        engine: str = "torch-folded",
        precision: Precision = "fp32",
        batch_size: int = 32,
        calibration: Iterable[str | os.PathLike[str]] | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> "Predictor":
        """A predictor from one file; ``load_classifier`` tells what it may hold, and what it raises.

        Args:
            path: A checkpoint, or what ``fastervit export`` made of one: see ``from_exported``.
            model: Name of the network, where the checkpoint does not tell it.
            img_size: Side or (height, width) that images are scaled to.
            device: "cpu", "cuda", "cuda:1", "mps"; "auto" for the best there is.
            engine: A name of ``openfastervit.inference.engines.ENGINES``; "auto" for the fastest one here, which is
                found by measuring, and remembered.
            precision: Of the engine.
            batch_size: The batch that the engine is made ready for; others work.
            calibration: For int8: image files like those to be classified. The first ones that can be read are used.
            tell: Called with lines that say what "auto" measures.

        Raises:
            ValueError: If the device is unknown or absent, the network takes neither 1 nor 3 channels, the engine
                cannot be had or has not that precision, or int8 is left without an image to calibrate with.
        """
        where = find_device(device)
        if is_exported(path):
            if model is not None or img_size is not None:
                raise ValueError(f"{path} is an exported network: model and img_size were settled when it was exported")
            return cls.from_exported(path, device=str(where), engine=engine, precision=precision)
        network, classes, told = load_classifier(path, model, img_size)
        try:
            preparation = Preparation.of(told)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        settings = Settings(
            preparation.img_size,
            precision,
            batch_size,
            str(where),
            calibration=_calibration(preparation, calibration or ()) if precision == "int8" else None,
        )
        return cls(_engine(network, engine, settings, tell), classes, preparation)

    @classmethod
    def from_exported(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        engine: str = "auto",
        precision: Precision = "fp32",
    ) -> "Predictor":
        """A predictor from a file that ``fastervit export`` made: its format is its engine.

        Args:
            path: Ends in ``.onnx``, ``.xml`` (OpenVINO), ``.pt2`` (torch) or ``.engine`` (TensorRT).
            device: As of ``from_checkpoint``.
            engine: "auto" or "torch-folded", the defaults elsewhere, or the file's own.
            precision: "fp32", the default elsewhere, or the file's own.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it was not made by ``fastervit export``, or is asked for another engine or precision.
        """
        about = read_about(path)
        if precision not in ("fp32", about.precision):
            raise ValueError(f"{path} computes in {about.precision}, not {precision}; export it in {precision}")
        exported = load_exported(path, device=device)
        if engine not in ("auto", "torch-folded", exported.engine.name):
            exported.engine.close()
            raise ValueError(f"{path} runs on {exported.engine.name}, not on {engine}; leave the engine out")
        return cls(exported.engine, exported.classes, Preparation.of(exported.preparation))

    def predict(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        topk: int = 5,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> Generator[Prediction | Failure, None, None]:
        """Classify images, yielding one result for each, in order.

        The images are read while the engine is at work, never more than a few batches ahead of what is asked for.
        A batch is ``batch_size`` places of ``paths``, fewer images where some cannot be read: which images share a
        batch, and so the last digits of their scores, follows from their places alone.

        Args:
            paths: Image files.
            topk: Classes a prediction, all of them where there are fewer.
            batch_size: Images the engine takes at once.
            workers: Threads that decode: Pillow lets go of the interpreter while it decodes and scales. By default one
                for each processor, up to 16.

        Raises:
            ValueError: If a number is below 1, or a batch does not fit in the device's memory.
        """
        check_numbers(topk=topk, batch_size=batch_size, workers=workers)
        topk = min(topk, len(self.classes))
        return self._predict(map(Path, paths), topk, batch_size, workers or min(_processors(), 16))

    def _predict(
        self, paths: Iterator[Path], topk: int, batch_size: int, workers: int
    ) -> Generator[Prediction | Failure, None, None]:
        def classify(loaded: list[Tensor | ImageError]) -> list[tuple[list[int], list[float]] | ImageError]:
            images = [image for image in loaded if isinstance(image, Tensor)]
            found = iter(self._classify(images, topk) if images else ())
            return [image if isinstance(image, ImageError) else next(found) for image in loaded]

        batches = overlapped(paths, self.preparation.load, classify, batch_size=batch_size, workers=workers)
        try:
            for batch, results in batches:
                for path, result in zip(batch, results, strict=True):
                    if isinstance(result, ImageError):
                        yield Failure(path, str(result))
                    else:
                        indices, scores = result
                        yield Prediction(path, tuple(self.classes[i] for i in indices), tuple(indices), tuple(scores))
        finally:
            batches.close()

    @torch.inference_mode()
    def _classify(self, pixels: list[Tensor], topk: int) -> list[tuple[list[int], list[float]]]:
        """8-bit pixels to class indices and scores, best first, for each image."""
        device = self.engine.device
        try:
            probabilities = self.engine(self.preparation.normalised(pixels, device)).softmax(dim=-1)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"a batch of {len(pixels)} images does not fit in the memory of {device}; choose a smaller one"
            ) from error
        if not bool(probabilities.isfinite().all()):
            raise ValueError(
                f"the engine {self.engine.name} gave numbers that are not finite in {self.engine.precision}; "
                "choose another precision"
            )
        scores, indices = probabilities.topk(topk, dim=-1)
        return list(zip(indices.tolist(), scores.tolist(), strict=True))

    def close(self) -> None:
        """Let go of the engine."""
        self.engine.close()


def _engine(network: nn.Module, name: str, settings: Settings, tell: Callable[[str], None]) -> Engine:
    if name == "auto":
        return auto_engine(network, settings, tell=tell)
    return create_engine(network, name, settings)


def _calibration(preparation: Preparation, paths: Iterable[str | os.PathLike[str]]) -> Tensor:
    """Normalised images ``(n, C, H, W)``: the first that can be read."""
    images: list[Tensor] = []
    for path in paths:
        image = preparation.load(Path(path))
        if isinstance(image, Tensor):
            images.append(image)
        if len(images) == CALIBRATION_IMAGES:
            break
    if not images:
        raise ValueError("precision='int8' needs images to take its ranges from, and none could be read; give some")
    return preparation.normalised(images, torch.device("cpu"))


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_numbers(**numbers: int | None) -> None:
    """Raise ``ValueError`` if one of them is below 1."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name}={number} must be at least 1")


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
