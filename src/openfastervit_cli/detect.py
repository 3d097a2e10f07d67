"""``fastervit detect``: train, evaluate, predict."""

import functools
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
    from openfastervit.tasks.detection.metrics import CocoMetrics


@settings_from("openfastervit.training.recipe:DetectionRecipe", group="detect")
def train(
    *,
    recipe: Path | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    print_config: bool = False,
    **settings: Any,
) -> int:
    """Train a detector on images with annotations in COCO's format.

    --data is a folder in COCO's layout (annotations/instances_train2017.json, train2017/, the same of val2017), or
    files are named one by one. Every setting of a recipe is an option too, and overrides the recipe's. What a run
    leaves, how it is resumed, and how it is started on several GPUs or machines is as with `fastervit train`.

    Args:
        recipe: A YAML file of settings, such as those in recipes/.
        out: The run's folder, new or empty (default: runs/MODEL-DATE).
        resume: The folder of a run to go on with.
        print_config: Print all settings as they would be used, and stop.
        settings: Settings of the recipe.
    """
    from openfastervit.training.recipe import DetectionRecipe

    return run_training(DetectionRecipe, recipe, out, resume, print_config, given(settings), "detect train")


def evaluate(
    *,
    checkpoint: Path | None = None,
    predictions: Path | None = None,
    data: Path | None = None,
    split: str = "val",
    annotations: Path | None = None,
    images: Path | None = None,
    out: Path | None = None,
    min_size: int | None = None,
    max_size: int | None = None,
    batch_size: int = 1,
    workers: int | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    max_unreadable: float = 0.01,
    json: bool = False,
) -> int:
    """Measure how good detections are: COCO's average precision of boxes and masks, each class by itself.

    Either of a network, which is run over the images, or of predictions that are there already. --out gets the
    figures, a table of all classes, and the predictions. Images that cannot be read are named on stderr and are in no
    figure; the exit code is then 3.

    Args:
        checkpoint: A detector's weights; or a run's folder, for its best network.
        predictions: A file of results in COCO's format, to be scored instead.
        data: A folder in COCO's layout.
        split: The split to evaluate on.
        annotations: COCO json, where it is not in its usual place.
        images: Folder of the images, where it is not in its usual place.
        out: A folder for the report, made if it is not there.
        min_size: Short side that images are scaled to; by default the checkpoint's.
        max_size: Longest side; by default the checkpoint's.
        batch_size: Images that the network takes at once, on each process.
        workers: Processes that decode images; by default as many as there are cores, at most 8.
        device: cpu, cuda, or auto.
        precision: Of the forward pass.
        max_unreadable: Share of images that cannot be read above which it stops, with an error.
        json: Print the figures as a JSON object.
    """
    if (checkpoint is None) == (predictions is None):
        raise ValueError("give either --checkpoint, to run a network, or --predictions, to score a file")
    check_numbers(batch_size, workers, max_unreadable)
    if predictions is not None:
        from openfastervit.data.coco import find_annotations
        from openfastervit.tasks.detection.metrics import evaluate_results

        file = annotations or find_annotations(_folder(data), split)
        metrics = evaluate_results(file, predictions)
        _told(metrics, {"predictions": str(predictions), "annotations": str(file)}, out, json)
        return 0
    assert checkpoint is not None
    from openfastervit.data.coco import CocoImages, find_coco
    from openfastervit.data.joint_transforms import DetectionEvaluation
    from openfastervit.data.loader import AnnotatedImages
    from openfastervit.inference.dense import load_detector
    from openfastervit.tasks.detection.metrics import CocoMetrics
    from openfastervit.tasks.detection.task import collate
    from openfastervit.training.judging import judge
    from openfastervit.training.parallel import Processes
    from openfastervit.training.recipe import LoopSettings

    detector = load_detector(checkpoint, min_size=min_size, max_size=max_size)
    if annotations is None or images is None:
        _folder(data)
    found = find_coco(data, split, annotations=annotations, images=images)
    source = CocoImages(
        found.annotations,
        found.images,
        masks=detector.plan.masks,
        classes=detector.classes,
        category_ids=detector.category_ids,
    )
    processes = Processes(LoopSettings(device=device, precision=precision))
    metrics, unreadable = judge(
        detector.model,
        AnnotatedImages(source, source.about, DetectionEvaluation(), training=False),
        CocoMetrics(found.annotations, detector.category_ids, masks=detector.plan.masks),
        processes,
        collate=collate,
        predict=lambda model, batch: model(batch.images),
        batch_size=batch_size,
        workers=workers,
        max_unreadable=max_unreadable,
    )
    if processes.is_main:
        about = {"checkpoint": str(checkpoint), "annotations": str(found.annotations), "precision": precision}
        _told(metrics, {**about, "device": str(processes.device)}, out, json)
    return conclude(unreadable, len(source), processes.is_main)


def predict(
    input: Path,
    *,
    checkpoint: Path,
    out: Path | None = None,
    pictures: Path | None = None,
    annotations: Path | None = None,
    score_threshold: float = 0.05,
    picture_threshold: float = 0.5,
    min_size: int | None = None,
    max_size: int | None = None,
    device: str = "auto",
) -> int:
    """Find objects in an image, or in all images of a folder.

    Prints what is found in each image, or with --out writes results in COCO's format: image_id, category_id, bbox
    (left, top, width, height, in pixels), score, segmentation (RLE) where the network gives masks, and file_name. An
    image_id is that of --annotations; without them it is the number that the file's name is, as COCO's are, if all are,
    else the image's place from 1 on. An image that cannot be read is named on stderr; the exit code is then 3.

    Args:
        input: An image, or a folder: all images in it and its subfolders, sorted by name.
        checkpoint: A detector's weights, a run's folder, or an exported detector (.onnx, .xml).
        out: File for the results, .json. It appears when complete.
        pictures: Folder for the images with boxes, masks and classes drawn in.
        annotations: COCO json that names the images, for their image_id.
        score_threshold: Detections below it are left out.
        picture_threshold: Detections below it are not drawn, nor printed.
        min_size: Short side that images are scaled to; by default the checkpoint's.
        max_size: Longest side; by default the checkpoint's.
        device: cpu, cuda, cuda:1; auto takes the best there is.
    """
    for name, value in (("score-threshold", score_threshold), ("picture-threshold", picture_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"--{name} {value} must be from 0 to 1")
    if out is not None and out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file in it, such as {out / 'predictions.json'}")
    from openfastervit.atomic import write_atomically
    from openfastervit.data.coco import image_ids
    from openfastervit.data.images import ImageError, find_images, open_image
    from openfastervit.inference.dense_predictor import open_detector
    from openfastervit.tasks.detection.results import to_results, write_results
    from openfastervit.tasks.drawing import draw_detections

    paths = find_images(input)
    names = names_below(input, paths, pictures is not None)
    ids = image_ids(paths, annotations)
    detector = open_detector(checkpoint, min_size=min_size, max_size=max_size, device=device)
    results: list[dict[str, Any]] = []
    failed: list[tuple[str, str]] = []
    with progress(len(paths), hidden=len(paths) == 1 or (out is None and sys.stdout.isatty())) as advance:
        for path, below, image_id in zip(paths, names, ids, strict=True):
            try:
                image = open_image(path)
            except ImageError as error:
                failed.append((str(path), str(error)))
                report_error(f"{path}: {error}")
                advance()
                continue
            found = detector.detect(image, score_threshold)
            if out is not None:
                rows = to_results(found, image_id, detector.category_ids)
                results += [{**row, "file_name": str(below)} for row in rows]
            else:
                print("\n".join(_lines(path, found, detector.classes, picture_threshold)))
            if pictures is not None:
                picture = draw_detections(image, found, detector.classes, threshold=picture_threshold)
                place = (pictures / below).with_suffix(".png")
                place.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(place, functools.partial(picture.save, format="PNG"))
            advance()
    if out is not None:
        write_results(out, results)
        print(
            f"fastervit: {len(results)} detections in {len(paths) - len(failed)} images; results in {out}",
            file=sys.stderr,
        )
    return 3 if failed else 0


def _folder(data: Path | None) -> Path:
    if data is None:
        raise ValueError("--data is not given; name the folder in COCO's layout, or --annotations and --images")
    return data


def _lines(path: Path, found: "dict[str, Any]", classes: Sequence[str], threshold: float) -> list[str]:
    lines = [str(path)]
    for box, label, score in zip(
        found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
    ):
        if score >= threshold:
            lines.append(f"  {score:8.2%}  {classes[label - 1]:<20}  " + " ".join(f"{side:.0f}" for side in box))
    return lines if len(lines) > 1 else [*lines, f"  nothing above {threshold:g}"]


def _told(metrics: "CocoMetrics", about: dict[str, Any], out: Path | None, json: bool) -> None:
    """Print the figures, and write the report."""
    from openfastervit.tasks.detection.report import write_report

    figures = metrics.compute()
    if out is not None:
        write_report(out, metrics, figures, about)
        print(f"fastervit: report in {out}", file=sys.stderr)
    if json:
        print(json_format.dumps({**about, **{name: number(value) for name, value in figures.items()}}, indent=2))
        return
    for name, value in {**about, **figures}.items():
        print(f"{name:<18}{value if isinstance(value, str) else format(value, '.4f' if name != 'images' else '.0f')}")
