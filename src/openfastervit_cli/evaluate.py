"""``fastervit evaluate``."""

import json as json_format
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from openfastervit_cli.parser import report_error

if TYPE_CHECKING:
    from openfastervit.data.imagenet import ClassMatch
    from openfastervit.data.sources import Source
    from openfastervit.inference import Classifier
    from openfastervit.tasks.metrics import ClassificationMetrics

_PER_CLASS = 20
"""Most classes that are told one by one on the terminal."""
_NAMED = 20
"""Most unreadable images that are named on the terminal."""


def evaluate(
    *,
    checkpoint: Path,
    data: str | None = None,
    data_root: Path | None = None,
    split: str | None = None,
    out: Path | None = None,
    model: str | None = None,
    classes: Path | None = None,
    restrict: bool | None = None,
    img_size: list[int] | None = None,
    crop_pct: float | None = None,
    crop_mode: Literal["center", "squash", "border"] | None = None,
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    max_unreadable: float = 0.01,
    json: bool = False,
) -> int:
    """Measure how good a classifier is: top-1, top-5, loss, calibration error, each class by itself.

    The data's folders are matched to the network's outputs by name; those of ImageNet, of ImageNet-V2 (0 to 999), and
    of ImageNet-A and ImageNet-R (200 classes, among which alone the network then chooses) by ImageNet's order. Images
    are prepared as the checkpoint says. --out gets a table of all classes, the confusion matrix and a reliability
    diagram. Images that cannot be read are named on stderr and are in no figure; the exit code is then 3. Under
    torchrun or accelerate launch the processes share the images, and each counts once.

    Args:
        checkpoint: Weights, as safetensors or torch file, in any layout; or a run's folder, for its best network.
        data: A folder of images (CLASS/..., or val/CLASS/...), of WebDataset shards or of a saved Hugging Face data
            set; or hfds/NAME, wds/PATTERN, torch/NAME. A run's folder needs none: its own validation images are taken,
            those held out too.
        data_root: Where hfds/ and torch/ data sets are kept.
        split: The split to evaluate on, where the data is divided (default: val).
        out: A folder for the report, made if it is not there.
        model: Name of the network, where the checkpoint does not tell it.
        classes: A file with the name of the data's folder for each output, one a line, in the order of the outputs.
        restrict: Let the network choose among the data's classes only; by default for ImageNet-A and ImageNet-R.
        img_size: Side, or height and width, that images are scaled to; by default the checkpoint's.
        crop_pct: Share of the scaled image that the network sees; by default the checkpoint's.
        crop_mode: How an image's shape is made the network's; by default the checkpoint's.
        interpolation: Filter of scaling; by default the checkpoint's.
        batch_size: Images that the network takes at once, on each process.
        workers: Processes that decode images; by default as many as there are cores, at most 8.
        device: cpu, cuda, or auto.
        precision: Of the forward pass.
        max_unreadable: Share of images that cannot be read above which it stops, with an error.
        json: Print the figures as a JSON object.
    """
    _check(batch_size, workers, crop_pct, max_unreadable, out)
    asked = _Asked(checkpoint, data, data_root, split, model)
    weights, images, where = _open(asked, classes, img_size)
    from openfastervit.data.imagenet import match_classes
    from openfastervit.training.classifier_evaluation import evaluate_classifier
    from openfastervit.training.parallel import Processes
    from openfastervit.training.recipe import LoopSettings

    given = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
    weights.preparation.update({name: value for name, value in given.items() if value is not None})
    names = weights.classes if classes is None else _read_names(classes, len(weights.classes))
    try:
        match = match_classes(images.classes, names, restrict=restrict)
    except ValueError as error:
        raise ValueError(f"{error} (--classes FILE)" if "classes file" in str(error) else str(error)) from error
    processes = Processes(LoopSettings(device=device, precision=precision))
    metrics, unreadable = evaluate_classifier(
        weights, images, match, processes, batch_size=batch_size, workers=workers, max_unreadable=max_unreadable
    )
    if not processes.is_main:
        return 3 if unreadable else 0
    figures = _figures(metrics, match, len(unreadable))
    about = {
        **where,
        **_about(weights, match, precision, str(processes.device)),
        "unreadable": [failure._asdict() for failure in unreadable],
    }
    if out is not None:
        from openfastervit.tasks.report import write_report

        written = write_report(out, metrics, about=about)
        if not any(path.suffix == ".png" for path in written):
            print("matplotlib is not installed, so no pictures are drawn: pip install matplotlib", file=sys.stderr)
    if json:
        print(json_format.dumps({**where, **figures}, indent=2))
    else:
        print(_table(where, about, figures, metrics))
    for name, reason in unreadable[:_NAMED]:
        report_error(f"{name}: {reason}")
    if unreadable:
        more = f", the first {_NAMED} of them named here" if len(unreadable) > _NAMED else ""
        report_error(f"{len(unreadable)} of {len(images)} images could not be read{more}; they are in no figure")
    if out is not None:
        print(f"fastervit: report in {out}", file=sys.stderr)
    return 3 if unreadable else 0


def _check(
    batch_size: int, workers: int | None, crop_pct: float | None, max_unreadable: float, out: Path | None
) -> None:
    """Raise ``ValueError`` where an option is out of range."""
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size} must be at least 1")
    if workers is not None and workers < 0:
        raise ValueError(f"--workers {workers} must be at least 0")
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise ValueError(f"--crop-pct {crop_pct} must be above 0, at most 1")
    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"--max-unreadable {max_unreadable} is a share, from 0 to 1")
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")


@dataclass(frozen=True)
class _Asked:
    """What is to be evaluated, on what."""

    checkpoint: Path
    data: str | None
    data_root: Path | None
    split: str | None
    model: str | None


def _open(
    asked: _Asked, classes: Path | None, img_size: Sequence[int] | None
) -> "tuple[Classifier, Source, dict[str, Any]]":
    """The classifier, the images, and words on both."""
    from openfastervit.data.sources import open_source
    from openfastervit.inference import load_classifier

    file = asked.checkpoint
    if file.is_dir():
        file = file / "best.safetensors"
        if not file.is_file():
            raise FileNotFoundError(
                f"--checkpoint {asked.checkpoint} is a folder without best.safetensors; give a checkpoint, or the "
                "folder of a run that has finished an epoch"
            )
    if not asked.checkpoint.exists():
        raise FileNotFoundError(f"no checkpoint at {asked.checkpoint}; check the path")
    if asked.data is None and not (asked.checkpoint / "recipe.yaml").is_file():
        raise ValueError("--data is missing: only the folder of a run tells its own; name the images to evaluate on")
    weights = load_classifier(file, asked.model, img_size)
    channels = weights.preparation["input_size"][0]
    if channels not in (1, 3):
        raise ValueError(f"{file}: the network takes {channels} channels; images have 3, or 1 in grayscale")
    mode: Literal["RGB", "L"] = "RGB" if channels == 3 else "L"
    if asked.data is not None:
        split = asked.split or "val"
        images = open_source(asked.data, split, root=asked.data_root, mode=mode)
        where = {"checkpoint": str(file), "data": asked.data, "split": split}
    else:
        images, where = _own_images(asked, mode)
        where = {"checkpoint": str(file), **where}
    if len(images) == 0:
        raise ValueError(f"{where['data']} has no images to evaluate on")
    return weights, images, where


def _own_images(asked: _Asked, mode: Literal["RGB", "L"]) -> "tuple[Source, dict[str, Any]]":
    """The images that a run is validated with, by its recipe; or those it learns from."""
    from openfastervit.data.sources import open_train_val
    from openfastervit.training.recipe import ClassificationRecipe, read_recipe

    # What the run started from may be gone, and is not needed.
    recipe = read_recipe(asked.checkpoint / "recipe.yaml", ClassificationRecipe, weights=None)
    if recipe.data is None:
        raise ValueError(f"{asked.checkpoint / 'recipe.yaml'} names no data; give --data")
    split = asked.split or recipe.val_split
    if split not in (recipe.train_split, recipe.val_split):
        raise ValueError(
            f"--split {split} is none of the run's ({recipe.train_split}, {recipe.val_split}); name its --data too"
        )
    try:
        training, validation, held_out = open_train_val(
            recipe.data,
            root=asked.data_root or recipe.data_root,
            val_fraction=recipe.val_fraction,
            train_split=recipe.train_split,
            val_split=recipe.val_split,
            seed=recipe.seed,
            mode=mode,
        )
    except OSError as error:
        raise ValueError(f"the run's own data is not there ({error}); say by --data where it is now") from error
    if split == recipe.train_split:
        return training, {"data": recipe.data, "split": split}
    return validation, {"data": recipe.data, "split": f"{split}, held out" if held_out else split}


def _read_names(file: Path, outputs: int) -> tuple[str, ...]:
    """The names in a classes file, one for each output."""
    if not file.is_file():
        raise FileNotFoundError(f"--classes {file}: there is no such file")
    try:
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"--classes {file} is no text in UTF-8; it holds a name a line") from error
    if len(names) != outputs:
        raise ValueError(f"--classes {file} names {len(names)} classes, the network has {outputs} outputs")
    return names


def _figures(metrics: "ClassificationMetrics", match: "ClassMatch", unreadable: int) -> dict[str, Any]:
    """The figures as plain data; null where one is undefined."""
    found = {name: value if math.isfinite(value) else None for name, value in metrics.compute().items()}
    return {
        **found,
        "unreadable": unreadable,
        "classes": len(match.classes),
        "matched": match.name,
        "restricted": match.subset is not None,
    }


def _about(classifier: "Classifier", match: "ClassMatch", precision: str, device: str) -> dict[str, Any]:
    """What it takes to get the figures again, as plain data."""
    from openfastervit import environment
    from openfastervit.training.environment import PACKAGES

    prepared = {
        key: list(value) if isinstance(value, tuple) else value for key, value in classifier.preparation.items()
    }
    return {
        "preparation": prepared,
        "matched": match.name,
        "outputs": match.outputs,
        "restricted_to": None if match.subset is None else list(match.subset),
        "precision": precision,
        "device": device,
        "versions": environment.versions(PACKAGES),
        "hardware": environment.hardware(),
    }


_MATCHES = {
    "same names": "by name",
    "imagenet-1k": "by ImageNet's order",
    "imagenet-a": "as ImageNet-A",
    "imagenet-r": "as ImageNet-R",
    "imagenet-v2": "by number, as ImageNet-V2",
}


def _table(
    where: Mapping[str, Any], about: Mapping[str, Any], figures: Mapping[str, Any], metrics: "ClassificationMetrics"
) -> str:
    """The figures for people."""
    prepared = about["preparation"]
    height, width = prepared["input_size"][1:]
    scaled = f"{height} x {width}, {prepared['crop_mode']} {prepared['crop_pct']:g}, {prepared['interpolation']}"
    present = [row for row in metrics.per_class() if row.images]
    among = f"{figures['classes']} of {about['outputs']}" if figures["restricted"] else f"{about['outputs']}"

    def number(name: str, form: str) -> str:
        return "undefined: outputs are not finite" if figures[name] is None else format(figures[name], form)

    lines = [
        ("checkpoint", where["checkpoint"]),
        ("data", f"{where['data']} ({where['split']})"),
        ("prepared", scaled),
        ("classes", f"{len(present)}, matched {_MATCHES[figures['matched']]}; the network chooses among {among}"),
        ("images", str(figures["images"])),
        ("unreadable", str(figures["unreadable"])),
        ("top-1", f"{figures['top1']:.2f} %"),
        ("top-5", f"{figures['top5']:.2f} %"),
        ("loss", number("loss", ".4f")),
        ("ECE", number("ece", ".4f")),
    ]
    text = [f"{name:<12}{value}" for name, value in lines]
    if len(present) <= _PER_CLASS:
        names = [" ".join(row.name.split()) for row in present]
        wide = max(map(len, ["class", *names]))
        text += ["", f"{'class':<{wide}}  images   top-1   top-5  precision  recall"]
        text += [
            f"{name:<{wide}}  {row.images:>6}  {row.top1:6.2f}  {row.top5:6.2f}  "
            + ("         -" if math.isnan(row.precision) else f"{row.precision:9.4f}")
            + f"  {row.recall:6.4f}"
            for name, row in zip(names, present, strict=True)
        ]
    return "\n".join(text)
