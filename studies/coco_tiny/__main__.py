"""Detection on real photographs: annotations score 1.0, sixteen photographs are learned, a whole epoch runs.

::

    python -m studies.coco_tiny --scale cpu --data coco-tiny --out runs/coco-tiny

Three parts, each a row or more in ``results.csv``:

- ``ground_truth``: the annotations of both splits as predictions, crowd regions included, must score 1.0;
- ``overfit``: a Cascade Mask R-CNN learns sixteen training photographs by heart and is judged on the same ones: a test
  of the code, not of what it makes of photographs it has not seen;
- ``epoch``: one epoch over all training photographs and all 80 classes, judged on the validation photographs.

A run that is interrupted goes on where it was when the same command is given again.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openfastervit.data.coco import find_annotations, find_coco
from openfastervit.data.coco_annotations import read_annotations
from openfastervit.tasks.detection.metrics import evaluate_results
from openfastervit.tasks.detection.results import annotations_as_results
from openfastervit.training.recipe import DetectionRecipe, read_recipe
from studies.coco_tiny.subset import write_subset
from studies.common.command_line import run_study
from studies.common.dense import conditions, train
from studies.common.table import write_table

RECIPE = Path(__file__).parents[2] / "recipes" / "coco_tiny_pocket.yaml"
PHOTOGRAPHS = 16

SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "model_options": {"dim": 8, "stem_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
        "head_options": {"fpn_channels": 16, "representation": 32, "mask_channels": 16, "box_samples": 16},
        "min_sizes": [64],
        "max_size": 96,
        "epochs": 1,
        "warmup_epochs": 0.5,
        "eval_every": 1,
    },
    "cpu": {},
    "gpu": {
        "model_options": {},
        "head_options": {},
        "min_sizes": [640],
        "max_size": 1066,
        "precision": "bf16",
        "lr": 2e-4,
    },
}
"""Settings in place of the recipe's. The smallest shows that the study runs; its figures mean nothing."""
FEW = 4
"""Photographs at the smallest scale."""

Row = dict[str, Any]


def ground_truth(data: Path) -> list[Row]:
    """The annotations as their own predictions."""
    rows = []
    for split in ("train", "val"):
        file = find_annotations(data, split)
        truth = read_annotations(file, masks=True)
        figures = evaluate_results(file, annotations_as_results(truth, masks=True), masks=True).compute()
        crowds = sum(1 for annotation in truth.annotations if annotation["iscrowd"])
        rows.append(
            {"part": "ground_truth", "split": split, "photographs": len(truth.images), "crowds": crowds}
            | _precisions(figures)
        )
    return rows


def overfit(data: Path, out: Path, settings: Row, command: list[str], few: bool) -> list[Row]:
    """Photographs learned by heart."""
    found = find_coco(data, "train")
    count = FEW if few else PHOTOGRAPHS
    subset = write_subset(found.annotations, out / "overfit.json", count)
    places = {"train_annotations": subset, "val_annotations": subset, "train_images": found.images}
    places["val_images"] = found.images
    recipe = read_recipe(RECIPE, DetectionRecipe, **settings, **{name: str(path) for name, path in places.items()})
    folder = out / "overfit"
    return [_row("overfit", "train", count, train(recipe, folder, command), folder)]


def epoch(data: Path, out: Path, settings: Row, command: list[str], few: bool) -> list[Row]:
    """One pass over all photographs."""
    found, judged = find_coco(data, "train"), find_coco(data, "val")
    files = [found.annotations, judged.annotations]
    if few:
        names = ("train.json", "val.json")
        files = [write_subset(file, out / name, FEW) for file, name in zip(files, names, strict=True)]
    once = {**settings, "epochs": 1, "warmup_epochs": 0.5, "hflip": 0.5, "eval_every": 1, "save_steps": 5}
    places = {"train_images": str(found.images), "val_images": str(judged.images)}
    places |= {"train_annotations": str(files[0]), "val_annotations": str(files[1])}
    recipe = read_recipe(RECIPE, DetectionRecipe, **once, **places)
    folder = out / "epoch"
    rows = train(recipe, folder, command)
    return [_row("epoch", "val", len(read_annotations(files[1], masks=False).images), rows, folder)]


def _row(part: str, split: str, photographs: int, epochs: list[dict[str, str]], folder: Path) -> Row:
    last = epochs[-1]
    return {
        "part": part,
        "split": split,
        "photographs": photographs,
        "epochs": len(epochs),
        "updates": last["step"],
        **_precisions({name.removeprefix("val_"): float(last[name]) for name in last if name.startswith("val_")}),
        "train_loss": last["train_loss"],
        "train_seconds": round(sum(float(row["seconds"]) for row in epochs)),
        **conditions(folder),
    }


def _precisions(figures: dict[str, float]) -> Row:
    return {name: round(figures[name], 4) for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50")}


COLUMNS = (
    *("part", "scale", "split", "photographs", "crowds", "epochs", "updates", "box_ap", "box_ap50", "mask_ap"),
    *("mask_ap50", "train_loss", "train_seconds", "starts", "processor", "cores", "gpus", "torch", "torchvision"),
    *("timm", "revision", "command"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that were asked for, and write their rows."""
    parser = argparse.ArgumentParser(prog="python -m studies.coco_tiny", description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=list(SCALES), required=True, help="size of the network and the images")
    parser.add_argument("--data", type=Path, required=True, help="the folder in COCO's layout")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and results")
    parser.add_argument("--only", nargs="+", choices=["ground_truth", "overfit", "epoch"], help="these parts alone")
    parser.add_argument("--device", default="auto", help="cpu or cuda (default: a GPU where there is one)")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode")
    options = parser.parse_args(arguments)
    command = ["python", "-m", "studies.coco_tiny", "--scale", options.scale, "--data", "coco-tiny", "--out", "OUT"]
    machine = {"device": options.device, "workers": options.workers}
    settings = {**SCALES[options.scale], **machine}
    few = options.scale == "smoke"
    parts: dict[str, Callable[[], list[Row]]] = {
        "ground_truth": lambda: ground_truth(options.data),
        "overfit": lambda: overfit(options.data, options.out, settings, command, few),
        "epoch": lambda: epoch(options.data, options.out, settings, command, few),
    }

    def study() -> dict[str, str]:
        rows: list[Row] = []
        for part in options.only or parts:
            for row in parts[part]():
                rows.append({**row, "scale": options.scale, "command": " ".join(command)})
                write_table(options.out / "results.csv", rows, COLUMNS)
                print(f"{part} {row['split']}: box AP {row['box_ap']}, mask AP {row['mask_ap']}")
        print(options.out / "results.csv")
        return {}

    return run_study(study)


if __name__ == "__main__":
    sys.exit(main())
