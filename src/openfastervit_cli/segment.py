"""``fastervit segment``: train, evaluate, predict."""

import json as json_format
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from openfastervit_cli.dense import check_numbers, conclude, names_below, number
from openfastervit_cli.parser import given, report_error, settings_from
from openfastervit_cli.progress import progress
from openfastervit_cli.training_run import run_training

if TYPE_CHECKING:
    import numpy as np

    from openfastervit.tasks.segmentation.metrics import SegmentationMetrics

_MULTI_SCALE = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


@settings_from("openfastervit.training.recipe:SegmentationRecipe", group="segment")
def train(
    *,
    recipe: Path | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    print_config: bool = False,
    **settings: Any,
) -> int:
    """Train a network for semantic segmentation on images with maps of labels.

    --data is a folder in ADE20K's layout, CamVid's, or a plain one: images/train, labels/train, the same of val, with
    PNGs that hold the number of each pixel's class. Every setting of a recipe is an option too, and overrides the
    recipe's. What a run leaves, how it is resumed, and how it is started on several GPUs or machines is as with
    `fastervit train`.

    Args:
        recipe: A YAML file of settings, such as those in recipes/.
        out: The run's folder, new or empty (default: runs/MODEL-DATE).
        resume: The folder of a run to go on with.
        print_config: Print all settings as they would be used, and stop.
        settings: Settings of the recipe.
    """
    from openfastervit.training.recipe import SegmentationRecipe

    return run_training(SegmentationRecipe, recipe, out, resume, print_config, given(settings), "segment train")


def evaluate(
    *,
    checkpoint: Path,
    data: Path,
    split: str = "val",
    mode: Literal["whole", "slide"] = "whole",
    multi_scale: bool = False,
    flip: bool = False,
    scales: list[float] | None = None,
    crop_size: list[int] | None = None,
    stride: list[int] | None = None,
    eval_size: int | None = None,
    ignore_label: int | None = None,
    out: Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    max_unreadable: float = 0.01,
    json: bool = False,
) -> int:
    """Measure how good a segmentation is: mIoU, each class's IoU, pixel accuracy.

    Figures are of pixels at the labels' own size. Images that cannot be read are named on stderr and are in no figure;
    the exit code is then 3.

    Args:
        checkpoint: A segmenter's weights; or a run's folder, for its best network.
        data: The folder of images and labels.
        split: The split to evaluate on.
        mode: Whole images at once, or windows that slide over them.
        multi_scale: Average over the scales 0.5 to 1.75, each flipped too, as published figures do.
        flip: Average over the image and its mirror image.
        scales: Average over these scales.
        crop_size: Side, or height and width, of sliding windows; by default the crops of training.
        stride: Of sliding windows; by default two thirds of them.
        eval_size: Short side that images are scaled to first; by default the checkpoint's.
        ignore_label: The value of pixels that count for nothing, where the layout does not tell.
        out: A folder for the report, made if it is not there.
        workers: Processes that decode images; by default as many as there are cores, at most 8.
        device: cpu, cuda, or auto.
        precision: Of the forward pass.
        max_unreadable: Share of images that cannot be read above which it stops, with an error.
        json: Print the figures as a JSON object.
    """
    check_numbers(1, workers, max_unreadable)
    if multi_scale and scales is not None:
        raise ValueError("--multi-scale and --scales contradict each other; leave one out")
    from openfastervit.data.joint_transforms import SegmentationEvaluation
    from openfastervit.data.loader import AnnotatedImages
    from openfastervit.data.semantic import open_semantic
    from openfastervit.inference.dense import load_segmenter
    from openfastervit.inference.segmenting import segment
    from openfastervit.tasks.segmentation.metrics import SegmentationMetrics
    from openfastervit.tasks.segmentation.task import collate
    from openfastervit.training.judging import judge
    from openfastervit.training.parallel import Processes
    from openfastervit.training.recipe import LoopSettings

    segmenter = load_segmenter(checkpoint)
    source = open_semantic(data, split, classes=segmenter.classes, ignore_label=ignore_label)
    crop = _pair(crop_size, "crop-size") or segmenter.crop_size
    step = _pair(stride, "stride")
    averaged = tuple(_MULTI_SCALE if multi_scale else scales or [1.0])
    options: dict[str, Any] = {"mode": mode, "crop": crop, "stride": step, "scales": averaged}
    options["flip"] = flip or multi_scale
    processes = Processes(LoopSettings(device=device, precision=precision))
    prepare = SegmentationEvaluation(eval_size or segmenter.eval_size, mean=segmenter.mean, std=segmenter.std)
    metrics, unreadable = judge(
        segmenter.model,
        AnnotatedImages(source, source.labels, prepare, training=False),
        SegmentationMetrics(segmenter.classes),
        processes,
        collate=collate,
        predict=lambda model, batch: [segment(model, image, **options) for image in batch.images],
        batch_size=1,
        workers=workers,
        max_unreadable=max_unreadable,
    )
    if processes.is_main:
        about = {"checkpoint": str(checkpoint), "data": str(data), "split": split, "precision": precision}
        told = {**about, "device": str(processes.device), "mode": mode, "scales": " ".join(f"{s:g}" for s in averaged)}
        _told(metrics, {**told, "flip": str(options["flip"]).lower()}, out, json)
    return conclude(unreadable, len(source), processes.is_main)


def predict(
    input: Path,
    *,
    checkpoint: Path,
    out: Path | None = None,
    pictures: Path | None = None,
    mode: Literal["whole", "slide"] = "whole",
    flip: bool = False,
    scales: list[float] | None = None,
    eval_size: int | None = None,
    device: str = "auto",
) -> int:
    """Tell the class of each pixel of an image, or of all images of a folder.

    Prints the share of each class in each image, or with --out writes a PNG an image, of its size, whose values are the
    numbers of the classes; in a folder of several, under the same names and subfolders. An image that cannot be read is
    named on stderr; the exit code is then 3.

    Args:
        input: An image, or a folder: all images in it and its subfolders, sorted by name.
        checkpoint: A segmenter's weights, a run's folder, or an exported segmenter (.onnx, .xml).
        out: Folder for the PNGs.
        pictures: Folder for the images with the classes laid over them in colour.
        mode: Whole images at once, or windows that slide over them.
        flip: Average over the image and its mirror image.
        scales: Average over these scales.
        eval_size: Short side that images are scaled to first; by default the checkpoint's.
        device: cpu, cuda, cuda:1; auto takes the best there is.
    """
    from PIL import Image

    from openfastervit.atomic import write_atomically
    from openfastervit.data.images import ImageError, find_images, open_image
    from openfastervit.inference.dense_predictor import open_segmenter
    from openfastervit.tasks.drawing import draw_labels

    paths = find_images(input)
    names = names_below(input, paths, out is not None or pictures is not None)
    segmenter = open_segmenter(
        checkpoint, mode=mode, flip=flip, scales=tuple(scales or [1.0]), eval_size=eval_size, device=device
    )

    def write(picture: Image.Image, folder: Path, name: Path) -> None:
        place = (folder / name).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, lambda file: picture.save(file, format="PNG"))

    failed = 0
    with progress(len(paths), hidden=len(paths) == 1 or (out is None and sys.stdout.isatty())) as advance:
        for path, name in zip(paths, names, strict=True):
            try:
                image = open_image(path)
            except ImageError as error:
                failed += 1
                report_error(f"{path}: {error}")
                advance()
                continue
            labels = segmenter.segment(image)
            if out is None:
                print("\n".join([str(path), *_shares(labels, segmenter.classes)]))
            else:
                write(Image.fromarray(labels), out, name)
            if pictures is not None:
                write(draw_labels(image, labels, segmenter.classes), pictures, name)
            advance()
    if out is not None:
        print(f"fastervit: {len(paths) - failed} images segmented; maps of labels in {out}", file=sys.stderr)
    return 3 if failed else 0


def _shares(labels: "np.ndarray", classes: Sequence[str]) -> list[str]:
    """The share of each class that occurs, the largest first."""
    import numpy as np

    counts = np.bincount(labels.ravel(), minlength=len(classes))
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    return [f"  {counts[k] / labels.size:8.2%}  {classes[k]}" for k in order]


def _pair(values: list[int] | None, name: str) -> tuple[int, int] | None:
    if values is None:
        return None
    if len(values) not in (1, 2) or min(values) < 1:
        raise ValueError(f"--{name} {' '.join(map(str, values))} must be one side, or height and width")
    return values[0], values[-1]


def _told(metrics: "SegmentationMetrics", about: dict[str, Any], out: Path | None, json: bool) -> None:
    """Print the figures, and write the report."""
    from openfastervit.tasks.segmentation.report import write_report

    figures = metrics.compute()
    rows = metrics.per_class()
    if out is not None:
        write_report(out, metrics, about)
        print(f"fastervit: report in {out}", file=sys.stderr)
    if json:
        print(json_format.dumps({**about, **{name: number(value) for name, value in figures.items()}}, indent=2))
        return
    for name, value in {**about, **figures}.items():
        print(f"{name:<18}{value if isinstance(value, str) else format(value, '.4f' if name != 'images' else '.0f')}")
    wide = max(len(row.name) for row in rows)
    print(f"\n{'class':<{wide}}     IoU  accuracy")
    for row in rows:
        print(f"{row.name:<{wide}}  {row.iou:6.4f}    {row.accuracy:6.4f}")
