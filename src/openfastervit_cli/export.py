"""``fastervit export``."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from openfastervit_cli.parser import report_error

if TYPE_CHECKING:
    from PIL import Image

    from openfastervit.inference.dense_export import DenseReport
    from openfastervit.inference.export import Report

_CALIBRATION_IMAGES = 300
_DENSE_CALIBRATION_IMAGES = 20
"""Their images are large, and each has hundreds of results."""


def export(
    *,
    checkpoint: Path,
    to: Literal["onnx", "openvino", "torch", "tensorrt"],
    out: Path,
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32",
    size: list[int] | None = None,
    dynamic_size: bool = False,
    preprocessing: bool = False,
    calibration: Path | None = None,
    calibration_images: int | None = None,
    model: str | None = None,
    device: str = "auto",
) -> int:
    """Write a network to a file that runs without this package.

    The file takes any number of images. It is opened and compared with the network before the command is done: what
    differs too much is refused, and nothing is written. Beside the network it holds the classes and how images are
    prepared; `fastervit predict --checkpoint FILE` reads them.

    Detectors and segmenters go to onnx and openvino, for images of one size; detectors take one image at a time.
    `fastervit detect predict` and `fastervit segment predict` read these files.

    Args:
        checkpoint: Weights, as safetensors or torch file, in any layout; or a run's folder, for its best network.
        to: The format.
        out: The file: .onnx; .xml for OpenVINO, with a .bin beside it; .pt2 for torch; .engine for TensorRT, with a
            .json beside it.
        precision: Of the products. int8 needs --calibration.
        size: Side, or height and width, of the images; by default the checkpoint's. Of a detector: multiples of 32.
        dynamic_size: Take images of any height and width, from 33 up.
        preprocessing: Take 8-bit pixels (B, 3, H, W), RGB, and normalise them in the file.
        calibration: A folder of real images, on which the file is compared; int8 takes its ranges from three quarters.
        calibration_images: How many of them at most, taken evenly; by default 300, of a detector or segmenter 20.
        model: Name of the network, where the checkpoint does not tell it.
        device: The GPU that TensorRT builds for; auto takes the first.
    """
    if size is not None and dynamic_size:
        raise ValueError("--size and --dynamic-size contradict each other; leave one out")
    if size is not None and len(size) not in (1, 2):
        raise ValueError(f"--size {' '.join(map(str, size))} is neither a side nor height and width")
    if calibration_images is not None and calibration_images < 1:
        raise ValueError(f"--calibration-images {calibration_images} must be at least 1")
    from openfastervit.data.images import find_images
    from openfastervit.inference import load_classifier
    from openfastervit.inference.dense import checkpoint_file, task_of
    from openfastervit.inference.export import Plan, check_out, sample_pixels
    from openfastervit.inference.export import export as write
    from openfastervit.models import read_metadata

    where = ("cuda" if device == "auto" else device) if to == "tensorrt" else "cpu"
    sides = None if size is None else (size[0], size[-1])
    # What can be said without reading anything is said first.
    check_out(out, Plan(to, precision, sides or (None if dynamic_size else (1, 1)), preprocessing, where))
    if precision == "int8" and calibration is None:
        raise ValueError("--precision int8 needs --calibration FOLDER: real images to take ranges from")
    paths = [] if calibration is None else find_images(calibration)
    checkpoint = checkpoint_file(checkpoint)
    task = task_of(checkpoint)
    if task != "classification":
        for name, given in (("dynamic-size", dynamic_size), ("preprocessing", preprocessing), ("model", model)):
            if given:
                raise ValueError(f"--{name} is for classifiers; {checkpoint} was trained for {task}; leave it out")
        images = _readable(_evenly(paths, calibration_images or _DENSE_CALIBRATION_IMAGES), calibration)
        return _export_dense(task, checkpoint, out, to, precision, sides, images)
    classifier = load_classifier(checkpoint, model, size)
    _, height, width = classifier.preparation["input_size"]
    plan = Plan(to, precision, None if dynamic_size else (height, width), preprocessing, where)
    pixels = None
    if paths:
        pixels, failed = sample_pixels(paths, classifier, calibration_images or _CALIBRATION_IMAGES)
        for path, reason in failed:
            report_error(f"{path}: {reason}")
        if pixels is None:
            raise ValueError(f"none of the images in {calibration} can be read")
    report = write(classifier, out, plan, pixels=pixels, model=model or read_metadata(checkpoint).get("model"))
    print(_told(report), file=sys.stderr)
    _hint(to, precision)
    print(report.files[0])
    return 0


def _export_dense(
    task: str,
    checkpoint: Path,
    out: Path,
    to: Any,
    precision: Any,
    size: tuple[int, int] | None,
    images: "Iterator[Image.Image]",
) -> int:
    """``export`` for detectors and segmenters."""
    from openfastervit.inference.dense import load_detector, load_segmenter
    from openfastervit.inference.dense_export import DensePlan, check_plan, export_detector, export_segmenter

    plan = DensePlan(to, precision, size)
    detects = task == "detection"
    check_plan(out, plan, "detection" if detects else "segmentation")
    if detects:
        report = export_detector(load_detector(checkpoint), out, plan, images=images)
    else:
        report = export_segmenter(load_segmenter(checkpoint), out, plan, images=images)
    print(_told_dense(report), file=sys.stderr)
    _hint(to, precision)
    print(report.files[0])
    return 0


def _evenly(paths: Sequence[Path], most: int) -> list[Path]:
    count = min(len(paths), most)
    return [paths[i * len(paths) // count] for i in range(count)]


def _readable(paths: Sequence[Path], folder: Path | None) -> "Iterator[Image.Image]":
    """The images, one by one; those that cannot be read are named.

    Raises:
        ValueError: If there are paths, but no image.
    """
    images = _opened(paths)
    first = next(images, None)
    if first is None:
        if paths:
            raise ValueError(f"none of the images in {folder} can be read")
        return images
    return itertools.chain([first], images)


def _opened(paths: Sequence[Path]) -> "Iterator[Image.Image]":
    from openfastervit.data.images import ImageError, open_image

    for path in paths:
        try:
            yield open_image(path)
        except ImageError as error:
            report_error(f"{path}: {error}")


def _told_dense(report: "DenseReport") -> str:
    """What was compared, a line each kind of images."""
    from openfastervit.inference.dense_comparison import DetectionComparison

    height, width = report.about.size
    lines = {}
    for one in report.comparisons:
        line = f"fastervit: {one.images} images of {height} x {width}: "
        if isinstance(one, DetectionComparison):
            line += (
                f"{one.agreement:.1%} of {one.detections} detections agree, boxes within {one.boxes:.2g} pixels, "
                f"scores within {one.scores:.2g}"
            )
            line += f", masks within {one.masks:.2g}" if "mask" in report.about.head else ""
        else:
            line += (
                f"scores differ from the network's by at most {one.difference:.2g}; the best class of pixels agrees "
                f"on {one.agreement:.1%}"
            )
        lines[one.images] = line
    return "\n".join(lines.values())


def _hint(to: str, precision: str) -> None:
    if to == "openvino" and precision == "fp32":
        print(
            "fastervit: where a processor has bfloat16, OpenVINO computes in it unless INFERENCE_PRECISION_HINT is f32",
            file=sys.stderr,
        )


def _told(report: "Report") -> str:
    """What was compared, a line each kind of images."""
    lines = []
    for kind in ("random", "real"):
        found = [one for one in report.comparisons if one.images == kind]
        if not found:
            continue
        sizes = ", ".join(dict.fromkeys(f"{one.size[0]} x {one.size[1]}" for one in found))
        worst = max(one.difference for one in found)
        what = "class probabilities" if report.about.precision == "int8" else "logits"
        line = f"fastervit: {kind} images of {sizes}: {what} differ from the network's by at most {worst:.2g}"
        if kind == "real":
            line += f"; the best class agrees on {min(one.agreement for one in found):.1%}"
        lines.append(line)
    return "\n".join(lines)
