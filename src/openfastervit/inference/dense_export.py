"""Detectors and segmenters written to files that run without this package, compared with the networks before.

As ``export`` does it for classifiers: into a hidden folder beside its place, opened, compared, and only then moved.
"""

import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from PIL import Image

from openfastervit.atomic import sync_directory, temporary_for
from openfastervit.inference import graphs
from openfastervit.inference.box_operations import translations
from openfastervit.inference.dense import Detector, Segmenter
from openfastervit.inference.dense_comparison import DetectionComparison, compare_detections, compare_scores
from openfastervit.inference.dense_file import DENSE_FORMATS, DenseAbout, DenseFile, DenseFormat, Size, Task
from openfastervit.inference.detector_graph import DetectorGraph, detector_graph
from openfastervit.inference.engines.engine import Precision, require
from openfastervit.inference.export import Comparison, ExportError, Plan, check_out
from openfastervit.inference.exported import KEY
from openfastervit.inference.exported_dense import ExportedDetector, ExportedSegmenter, fitted
from openfastervit.inference.segmenter_graph import segmenter_graph
from openfastervit.tasks.detection.detr import DetrDetector
from openfastervit.tasks.detection.rcnn import RCNN

if TYPE_CHECKING:
    import onnx_ir
    import openvino

PRECISIONS: dict[Task, tuple[Precision, ...]] = {"detection": ("fp32",), "segmentation": ("fp32", "fp16")}
"""What files can hold and run."""
MULTIPLE = 32
"""Of pixels, that sides of a detector's images are: strides of its maps divide it."""

_NEEDS: dict[DenseFormat, tuple[str, list[str]]] = {
    "onnx": ("export", ["onnx", "onnxscript", "onnxruntime"]),
    "openvino": ("openvino", ["openvino"]),
}


@dataclass(frozen=True)
class DensePlan:
    """What is exported, and how.

    Raises:
        ValueError: If the size is too small.
    """

    to: DenseFormat
    precision: Precision = "fp32"
    size: Size | None = None
    """Height and width of the images; by default the checkpoint's."""

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < MULTIPLE:
            raise ValueError(f"a size of {self.size[0]} x {self.size[1]} is too small: sides are at least {MULTIPLE}")

    def check(self, task: Task) -> None:
        """Raise ``ValueError`` if networks for the task are not exported so."""
        kind = {"detection": "detectors", "segmentation": "segmenters"}[task]
        if self.to not in DENSE_FORMATS:
            raise ValueError(f"to={self.to!r}: {kind} are exported to {' and '.join(DENSE_FORMATS)} alone")
        if self.precision not in PRECISIONS[task]:
            raise ValueError(
                f"precision={self.precision!r}: {kind} are exported in {' and '.join(PRECISIONS[task])} alone"
            )
        if self.size is None or task == "segmentation":
            return
        whole = (_rounded_up(self.size[0]), _rounded_up(self.size[1]))
        if self.size != whole:
            raise ValueError(
                f"a size of {self.size[0]} x {self.size[1]}: sides of a detector's images are multiples of {MULTIPLE}, "
                f"such as {whole[0]} x {whole[1]}"
            )


class DenseReport(NamedTuple):
    """What was written."""

    files: tuple[Path, ...]
    comparisons: tuple[DetectionComparison, ...] | tuple[Comparison, ...]
    about: DenseAbout


def export_detector(
    detector: Detector, out: str | os.PathLike[str], plan: DensePlan, *, images: Iterable[Image.Image] = ()
) -> DenseReport:
    """Write a detector to a file, and compare what the file finds with what the network finds.

    Args:
        detector: As ``load_detector`` gives it. It is left as it is.
        out: The file; its name ends as its format's do. OpenVINO puts a .bin beside it, ONNX above 2 GB a .data. A file
            that is there is replaced, by a whole one.
        plan: What is written.
        images: Real ones, to compare on.

    Raises:
        ValueError: If the name does not fit the format, or the network the size.
        ExportError: If the file's detections are others than the network's: nothing is left at ``out``.
        EngineError: If the format's library is not installed.
        GraphError: If the network has no such graph.
        OSError: If it cannot be written.
    """
    out = Path(out)
    check_plan(out, plan, "detection")
    model = detector.model
    # It was trained on stretched images if its transform has one size.
    fixed = model.transform.fixed_size if isinstance(model, RCNN | DetrDetector) else None
    about = DenseAbout(
        task="detection",
        format=plan.to,
        precision=plan.precision,
        model=detector.plan.model,
        head=detector.plan.head,
        classes=detector.classes,
        category_ids=detector.category_ids,
        size=plan.size or default_size(detector),
        resize="fit" if fixed is None else "stretch",
        mean=tuple(detector.plan.mean),
        std=tuple(detector.plan.std),
        versions=_versions(plan),
    )

    def write(path: Path) -> tuple[DetectionComparison, ...]:
        graph = detector_to_onnx(detector_graph(model, about.size), about.size)
        if plan.to == "onnx":
            _save_onnx(graph, about, path)
        else:
            _save_openvino(onnx_to_openvino(graph), about, path)
        return compare_detections(model, DenseFile(path, "detection"), (fitted(image, about) for image in images))

    return DenseReport(*_written(out, write), about)


def export_segmenter(
    segmenter: Segmenter, out: str | os.PathLike[str], plan: DensePlan, *, images: Iterable[Image.Image] = ()
) -> DenseReport:
    """Write a segmenter to a file, and compare its scores with the network's.

    Args:
        segmenter: As ``load_segmenter`` gives it. It is left as it is.
        out: As in ``export_detector``.
        plan: What is written.
        images: Real ones, to compare on.

    Raises:
        ValueError: If the name does not fit the format.
        ExportError: If the file's scores differ too much: nothing is left at ``out``.
        EngineError: If the format's library is not installed.
        GraphError: If the network has no such graph.
        OSError: If it cannot be written.
    """
    out = Path(out)
    check_plan(out, plan, "segmentation")
    about = DenseAbout(
        task="segmentation",
        format=plan.to,
        precision=plan.precision,
        model=segmenter.plan.model,
        head=segmenter.plan.head,
        classes=segmenter.classes,
        category_ids=None,
        size=plan.size or segmenter.crop_size,
        resize="stretch",
        mean=segmenter.mean,
        std=segmenter.std,
        versions=_versions(plan),
    )

    def write(path: Path) -> tuple[Comparison, ...]:
        network = segmenter_graph(segmenter.model, about.size)
        if plan.to == "onnx":
            _save_onnx(graphs.to_onnx(graphs.to_precision(network, plan.precision), about.size), about, path)
        else:
            _save_openvino(graphs.to_openvino(network, about.size), about, path)
        return compare_scores(
            segmenter.model, DenseFile(path, "segmentation"), (fitted(image, about) for image in images)
        )

    return DenseReport(*_written(out, write), about)


def default_size(detector: Detector) -> Size:
    """Height and width for the images that a detector was trained on, those that are wider than high."""
    model = detector.model
    fixed = model.transform.fixed_size if isinstance(model, RCNN | DetrDetector) else None
    width, height = fixed or (detector.plan.max_size, detector.plan.min_sizes[-1])
    return _rounded_up(height), _rounded_up(width)


# --- Graphs -----------------------------------------------------------------------------------------------------------


def detector_to_onnx(graph: DetectorGraph, size: Size) -> "onnx_ir.Model":
    """The graph of a detector as an ONNX model. Its inputs are ``images`` and ``size``.

    Raises:
        GraphError: If it has operations that ONNX has not.
    """
    example = (torch.zeros(1, 3, *size), torch.tensor(size))
    with torch.no_grad(), graphs._quietly():
        try:
            program = torch.export.export(graph, example)
            exported = torch.onnx.export(
                program,
                input_names=["images", "size"],
                output_names=graph.outputs,
                opset_version=graphs.OPSET,
                custom_translation_table={**graphs._translations(), **translations()},
                verbose=False,
            )
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            cause = error.__cause__ or error
            raise graphs.GraphError(
                f"this detector has no ONNX graph: {str(cause).splitlines()[0]}; use its checkpoint"
            ) from error
    assert exported is not None  # only with dynamo=False
    return exported.model


def onnx_to_openvino(graph: "onnx_ir.Model") -> "openvino.Model":
    """A detector for OpenVINO, which knows none of our own operations as torch sees them."""
    import openvino

    with tempfile.TemporaryDirectory(prefix="openfastervit-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "network.onnx"
        graphs.save_onnx(graph, path)
        return openvino.convert_model(path)


# --- Writing ----------------------------------------------------------------------------------------------------------

Compared = TypeVar("Compared")


def check_plan(out: Path, plan: DensePlan, task: Task) -> None:
    """Raise ``ValueError`` unless a network for the task can become what is planned, with the libraries that are here.

    Raises:
        ValueError: If the format, the precision, the size or the file's name does not fit.
        EngineError: If a library is not installed.
    """
    plan.check(task)
    check_out(out, Plan(plan.to))
    require(plan.to, *_NEEDS[plan.to])
    if task == "detection":
        require(plan.to, *_NEEDS["onnx"])


def _written(out: Path, write: Callable[[Path], Compared]) -> tuple[tuple[Path, ...], Compared]:
    """Let a file, and what belongs to it, be written and judged aside, and move it to its place."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_for(out)
    try:
        folder.mkdir()
        comparisons = write(folder / out.name)
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
    return tuple(out.parent / file.name for file in reversed(files)), comparisons


def _save_onnx(graph: "onnx_ir.Model", about: DenseAbout, path: Path) -> None:
    graph.metadata_props[KEY] = about.to_json()
    graphs.save_onnx(graph, path)


def _save_openvino(model: "openvino.Model", about: DenseAbout, path: Path) -> None:
    import openvino

    model.set_rt_info(about.to_json(), [KEY])
    openvino.save_model(model, path, compress_to_fp16=about.precision == "fp16")


def _versions(plan: DensePlan) -> dict[str, str]:
    names = ("openfastervit", "torch", "torchvision", *_NEEDS[plan.to][1])
    return {name: importlib.metadata.version(name) for name in names}


def _rounded_up(side: int) -> int:
    return -(-side // MULTIPLE) * MULTIPLE


__all__ = [
    "DenseAbout",
    "DensePlan",
    "DenseReport",
    "ExportError",
    "ExportedDetector",
    "ExportedSegmenter",
    "check_plan",
    "export_detector",
    "export_segmenter",
]
