"""A network written to a file that runs without this package, and compared with the network before it counts.

``export`` writes into a hidden folder beside its place, opens what it wrote, compares the logits, and
only then moves it where it was asked for: what differs too much leaves nothing behind.
"""

import copy
import importlib.metadata
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from openfastervit.atomic import sync_directory, temporary_for
from openfastervit.data.images import ImageError
from openfastervit.inference.checkpoint import Classifier
from openfastervit.inference.engines.engine import MAX_DIFFERENCE, Precision, deployable, difference, require
from openfastervit.inference.exported import (
    FORMATS,
    KEY,
    PRECISIONS,
    SUFFIXES,
    About,
    Exported,
    Format,
    beside_plan,
    is_exported,
    load_exported,
    open_exported,
    read_about,
)
from openfastervit.inference.graphs import (
    OPEN_SIDES,
    input_name,
    save_onnx,
    to_onnx,
    to_openvino,
    to_precision,
    to_program,
)
from openfastervit.inference.preparation import Preparation
from openfastervit.inference.preprocessing import FromPixels
from openfastervit.inference.quantise import LEAST_IMAGES

if TYPE_CHECKING:
    import openvino

MAX_DISTANCE = 0.05
"""For int8: mean total variation distance, 0 to 1, between the class probabilities, on images it has not seen."""
BATCHES = (1, 3)
"""Batches that are compared."""

_MEND = {
    ("onnx", "bf16"): "ONNX Runtime has no bfloat16 on CPUs; choose fp16, or export to openvino or torch",
    ("torch", "int8"): "torch programs have no int8 here; export to onnx or openvino",
    ("tensorrt", "int8"): "int8 is not built here; choose fp16",
}
_NEEDS: dict[Format, tuple[str, list[str]]] = {
    "onnx": ("export", ["onnx", "onnxscript", "onnxruntime"]),
    "openvino": ("openvino", ["openvino"]),
    "torch": ("", []),
    "tensorrt": ("tensorrt", ["tensorrt"]),
}


class ExportError(ValueError):
    """An export would not be exact, or cannot be: nothing was written."""


class Comparison(NamedTuple):
    """An exported network beside the plain one, on one batch."""

    images: str
    """What they are: "random" or "real"."""
    batch_size: int
    size: tuple[int, int]
    difference: float
    """The largest of an image: norm of the logits' difference over the norm of the logits. For int8: the mean total
    variation distance of the class probabilities."""
    agreement: float
    """Part of the images whose best class is the same."""


class Report(NamedTuple):
    """What ``export`` wrote."""

    files: tuple[Path, ...]
    comparisons: tuple[Comparison, ...]
    about: About


@dataclass(frozen=True)
class Plan:
    """What is exported, and how.

    Raises:
        ValueError: If the format cannot hold that.
    """

    to: Format
    precision: Precision = "fp32"
    size: tuple[int, int] | None = None
    """Height and width of the images; None for any."""
    preprocessing: bool = False
    """8-bit pixels in, normalised inside."""
    device: str = "cpu"
    """Where TensorRT builds; other formats are compared on the CPU."""

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise ValueError(f"to={self.to!r} is unknown; choose one of {', '.join(FORMATS)}")
        if self.precision not in PRECISIONS[self.to]:
            mend = _MEND.get((self.to, self.precision), f"choose one of {', '.join(PRECISIONS[self.to])}")
            raise ValueError(f"{self.to} in {self.precision} is not to be had: {mend}")
        if self.to == "tensorrt" and self.size is None:
            raise ValueError("a TensorRT plan is for one size of images; give it")


def export(
    classifier: Classifier,
    out: str | os.PathLike[str],
    plan: Plan,
    *,
    pixels: Tensor | None = None,
    model: str | None = None,
) -> Report:
    """Write a network to a file, and compare what the file gives with what the network gives.

    Args:
        classifier: In float32, as ``load_classifier`` gives it. It is left as it is.
        out: The file; its name ends as its format's do. OpenVINO puts a .bin beside it, TensorRT a .json, ONNX above
            2 GB a .data. A file that is there is replaced, by a whole one.
        plan: What is written.
        pixels: Real images ``(n, C, H, W)`` in uint8, prepared as the classifier's. int8 needs them: three quarters
            give the ranges, the rest is compared. Other precisions compare all of them.
        model: The network's name, kept in the file.

    Raises:
        ValueError: If the name does not fit the format, or images are missing for int8.
        ExportError: If the file's logits differ too much from the network's: the difference is told, and nothing is
            left at ``out``.
        EngineError: If the format's library is not installed.
        GraphError: If the network has no such graph.
        OSError: If it cannot be written.
    """
    out = Path(out)
    check_out(out, plan)
    extra, modules = _NEEDS[plan.to]
    require(plan.to, extra, modules)
    unseen = pixels
    if plan.precision == "int8":
        if pixels is None or len(pixels) < 2 * LEAST_IMAGES:
            count = 0 if pixels is None else len(pixels)
            raise ValueError(f"int8 needs at least {2 * LEAST_IMAGES} real images, better 300, not {count}")
        held_out = torch.arange(len(pixels)) % 4 == 3
        pixels, unseen = pixels[~held_out], pixels[held_out]
    about = About(
        format=plan.to,
        precision=plan.precision,
        classes=classifier.classes,
        preparation=classifier.preparation,
        size=plan.size,
        preprocessing=plan.preprocessing,
        model=model,
        versions={name: importlib.metadata.version(name) for name in ("openfastervit", "torch", *modules)},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_for(out)
    try:
        folder.mkdir()
        written = folder / out.name
        _WRITERS[plan.to](classifier, about, written, plan, pixels)
        comparisons = _compare(classifier, written, plan, unseen)
        # What belongs to a file comes first: where the file itself is, the rest is there too.
        files = sorted(folder.iterdir(), key=lambda file: file.name == out.name)
        for file in files:
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        for file in files:
            os.replace(file, out.parent / file.name)
        sync_directory(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Report(tuple(out.parent / file.name for file in reversed(files)), comparisons, about)


def check_out(out: Path, plan: Plan) -> None:
    """Raise ``ValueError`` unless a file of that name can become what is planned."""
    suffix = SUFFIXES[plan.to]
    if out.suffix.lower() != suffix:
        raise ValueError(
            f"{out} does not end in {suffix}, as {plan.to} files do; name it {out.with_suffix(suffix).name}"
        )
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name a file in it, such as {out / f'network{suffix}'}")


# --- Writing ----------------------------------------------------------------------------------------------------------


def _graph_network(classifier: Classifier, about: About, plan: Plan) -> tuple[nn.Module, torch.dtype]:
    """The network to be traced, and the type of its images."""
    # int8 is made of a float32 graph.
    floating: Precision = "fp32" if plan.precision == "int8" else plan.precision
    network = to_precision(deployable(classifier.model, plan.size), floating)
    if not plan.preprocessing:
        return network.eval(), torch.float32
    told = about.preparation
    return FromPixels(network, told["mean"], told["std"]).eval(), torch.uint8


def _write_onnx(classifier: Classifier, about: About, path: Path, plan: Plan, pixels: Tensor | None) -> None:
    import onnx_ir

    network, dtype = _graph_network(classifier, about, plan)
    graph = to_onnx(network, plan.size, dtype=dtype)
    if plan.precision == "int8":
        from openfastervit.inference.quantise_onnx import quantise_onnx

        assert pixels is not None
        images = pixels if plan.preprocessing else normalised(pixels, classifier)
        graph = onnx_ir.from_proto(quantise_onnx(onnx_ir.to_proto(graph), images))
    graph.metadata_props[KEY] = about.to_json()
    save_onnx(graph, path)


def _write_openvino(classifier: Classifier, about: About, path: Path, plan: Plan, pixels: Tensor | None) -> None:
    import openvino

    model = to_openvino(deployable(classifier.model, plan.size), plan.size)
    if plan.precision == "int8":
        from openfastervit.inference.quantise import quantise_openvino

        require("openvino", "openvino", ["nncf"])
        assert pixels is not None
        model = quantise_openvino(model, normalised(pixels, classifier))
    if plan.preprocessing:
        model = _openvino_from_pixels(model, about)
    model.set_rt_info(about.to_json(), [KEY])
    openvino.save_model(model, path, compress_to_fp16=plan.precision == "fp16")


def _openvino_from_pixels(model: "openvino.Model", about: About) -> "openvino.Model":
    import openvino
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    image = steps.input()
    image.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NCHW"))
    image.model().set_layout(openvino.Layout("NCHW"))
    mean, std = ([255 * value for value in about.preparation[key]] for key in ("mean", "std"))
    image.preprocess().convert_element_type(openvino.Type.f32).mean(mean).scale(std)
    model = steps.build()
    model.inputs[0].get_tensor().set_names({input_name(torch.uint8)})
    return model


def _write_torch(classifier: Classifier, about: About, path: Path, plan: Plan, pixels: Tensor | None) -> None:
    network, dtype = _graph_network(classifier, about, plan)
    program = to_program(network, plan.size, dtype=dtype)
    with warnings.catch_warnings():
        # Of weights that share memory: they are on the CPU, where this is no concern.
        warnings.filterwarnings("ignore", message="No complete tensor found")
        torch.export.save(program, path, extra_files={KEY: about.to_json()})


def _write_tensorrt(classifier: Classifier, about: About, path: Path, plan: Plan, pixels: Tensor | None) -> None:
    from openfastervit.inference.engines.tensorrt import build_plan

    assert plan.size is not None
    network = deployable(classifier.model, plan.size)
    if plan.preprocessing:
        network = FromPixels(network, about.preparation["mean"], about.preparation["std"])
    path.write_bytes(
        build_plan(
            network,
            plan.size,
            precision=plan.precision,
            device=plan.device,
            dtype=torch.uint8 if plan.preprocessing else torch.float32,
        )
    )
    beside_plan(path).write_text(about.to_json(), "utf-8")


_WRITERS: dict[Format, Callable[[Classifier, About, Path, Plan, Tensor | None], None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torch": _write_torch,
    "tensorrt": _write_tensorrt,
}


# --- Real images ------------------------------------------------------------------------------------------------------


def sample_pixels(
    paths: Sequence[Path], classifier: Classifier, count: int = 300
) -> tuple[Tensor | None, list[tuple[Path, str]]]:
    """Images for ``export``, taken evenly from all of them: sorted by name, they are often sorted by class.

    Returns:
        Their pixels ``(n, C, H, W)`` in uint8, None if there are none; and the files that cannot be read, with reasons.
    """
    preparation = Preparation.of(classifier.preparation)
    count = min(count, len(paths))
    taken = [paths[i * len(paths) // count] for i in range(count)]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        loaded = list(pool.map(preparation.load, taken))
    pixels = [image for image in loaded if isinstance(image, Tensor)]
    failed = [(path, str(image)) for path, image in zip(taken, loaded, strict=True) if isinstance(image, ImageError)]
    return torch.stack(pixels) if pixels else None, failed


# --- Comparing --------------------------------------------------------------------------------------------------------


def normalised(pixels: Tensor, classifier: Classifier) -> Tensor:
    """Images ``(B, C, H, W)`` in float32 from 8-bit pixels."""
    mean, std = (torch.tensor(classifier.preparation[key]).view(-1, 1, 1) * 255 for key in ("mean", "std"))
    return (pixels.float() - mean) / std


def compared_sizes(size: tuple[int, int] | None, default: tuple[int, int], to: Format) -> tuple[tuple[int, int], ...]:
    """Sizes at which an export is compared: its own, or for an open one several, oblong and of no round numbers."""
    if size is not None:
        return (size,)
    height, width = default
    sizes = (default, (height, width + 83), (2 * height - 5, width))
    if to == "torch":  # its programs want more than one window, which small images do not have
        return sizes
    return (*sizes, (OPEN_SIDES[0], OPEN_SIDES[0] + 32))


@torch.inference_mode()
def _compare(classifier: Classifier, written: Path, plan: Plan, real: Tensor | None) -> tuple[Comparison, ...]:
    """Run the file, and the network in plain float32, on the same images; raise ``ExportError`` if they differ."""
    network = copy.deepcopy(classifier.model).eval().float()
    channels, *default = classifier.preparation["input_size"]
    engine = open_exported(written, device=plan.device)
    found: list[Comparison] = []

    def compare(kind: str, pixels: Tensor, batch_size: int) -> None:
        logits = [
            (
                engine(piece if plan.preprocessing else normalised(piece, classifier)).cpu(),
                network(normalised(piece, classifier)),
            )
            for piece in pixels.split(batch_size)
        ]
        outputs, expected = (torch.cat(list(rows)) for rows in zip(*logits, strict=True))
        if outputs.shape != expected.shape:
            raise ExportError(f"it gives {list(outputs.shape)} for {list(expected.shape)}; it is not written")
        agreement = float((outputs.argmax(-1) == expected.argmax(-1)).double().mean())
        size = (pixels.shape[2], pixels.shape[3])
        apart = _distance if plan.precision == "int8" else difference
        found.append(Comparison(kind, batch_size, size, apart(outputs, expected), agreement))

    generator = torch.Generator().manual_seed(0)
    try:
        for size in compared_sizes(plan.size, (default[0], default[1]), plan.to):
            for batch_size in BATCHES:
                noise = torch.randint(256, (batch_size, channels, *size), generator=generator, dtype=torch.uint8)
                compare("random", noise, batch_size)
        if real is not None:
            compare("real", real, BATCHES[-1])
    finally:
        engine.close()
    _judge(found, plan)
    return tuple(found)


def _distance(found: Tensor, expected: Tensor) -> float:
    """Mean total variation distance, 0 to 1, between the class probabilities of logits ``(B, classes)``."""
    return float((found.double().softmax(-1) - expected.double().softmax(-1)).abs().sum(-1).mean() / 2)


def _judge(found: Sequence[Comparison], plan: Plan) -> None:
    # Of noise, a network says nothing that ranges of real images could keep: int8 is judged by real ones.
    judged = [one for one in found if plan.precision != "int8" or one.images == "real"]
    most = MAX_DISTANCE if plan.precision == "int8" else MAX_DIFFERENCE[plan.precision]
    worst = max(judged, key=lambda one: (one.difference != one.difference, one.difference))
    if not worst.difference <= most:  # also where it is not a number
        what = "class probabilities" if plan.precision == "int8" else "logits"
        mend = "choose fp32" if plan.precision != "fp32" else "use an engine of torch"
        raise ExportError(
            f"the exported network's {what} differ from the network's by {worst.difference:.2g}, more than {most:g}, "
            f"on {worst.images} images of {worst.size[0]} x {worst.size[1]}; it is not written; {mend}"
        )


__all__ = [
    "FORMATS",
    "MAX_DISTANCE",
    "PRECISIONS",
    "SUFFIXES",
    "About",
    "Comparison",
    "ExportError",
    "Exported",
    "Format",
    "Plan",
    "Report",
    "check_out",
    "compared_sizes",
    "export",
    "is_exported",
    "load_exported",
    "normalised",
    "open_exported",
    "read_about",
    "sample_pixels",
]
