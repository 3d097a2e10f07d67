"""Semantic segmentation of CamVid's street scenes from random weights: the curve of mIoU, and each class's IoU.

::

    python -m studies.camvid --scale cpu --data camvid --out runs/camvid

``cpu`` trains a pocket network for about 40 minutes on two cores; ``gpu`` a FasterViT-0 at full width. The network is
trained on the 367 training images and judged on the 101 validation images as it goes; then once, at the end, on these
and on the 233 test images, at one scale and at several with flips. A run that is interrupted goes on where it was when
the same command is given again.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from openfastervit.data.joint_transforms import SegmentationEvaluation
from openfastervit.data.semantic import open_semantic
from openfastervit.inference.dense import load_segmenter
from openfastervit.inference.segmenting import segment
from openfastervit.tasks.segmentation.metrics import SegmentationMetrics
from openfastervit.training.recipe import SegmentationRecipe, read_recipe
from studies.common.command_line import run_study
from studies.common.dense import conditions, train
from studies.common.table import write_table

RECIPES = Path(__file__).parents[2] / "recipes"
SCALES: dict[str, tuple[str, dict[str, Any]]] = {
    "smoke": (
        "camvid_pocket.yaml",
        {
            "model_options": {"dim": 8, "stem_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
            "head_options": {"hidden_size": 16, "auxiliary_channels": 16},
            "crop_size": [64, 64],
            "train_size": 64,
            "eval_size": 64,
            "epochs": 1,
            "warmup_epochs": 0.5,
            "eval_every": 1,
            "precision": "fp32",
        },
    ),
    "cpu": ("camvid_pocket.yaml", {}),
    "gpu": ("camvid_fastervit_0.yaml", {}),
}
"""A recipe and settings in place of its own. The smallest shows that the study runs; its figures mean nothing."""
LOOKS: dict[str, dict[str, Any]] = {
    "single": {},
    "multi-scale and flip": {"scales": (0.75, 1.0, 1.25), "flip": True},
}


def judge(folder: Path, data: Path, split: str, look: dict[str, Any], most: int | None) -> SegmentationMetrics:
    """What the best network makes of a split."""
    segmenter = load_segmenter(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = segmenter.model.to(device)
    source = open_semantic(data, split, classes=segmenter.classes)
    prepare = SegmentationEvaluation(segmenter.eval_size, mean=segmenter.mean, std=segmenter.std)
    metrics = SegmentationMetrics(segmenter.classes)
    with torch.inference_mode():
        for index in range(min(len(source), most or len(source))):
            image, labels = prepare(source.open(index), source.labels(index))
            metrics.update([segment(network, image.to(device), **look).cpu()], [labels])
    return metrics


def main(arguments: list[str] | None = None) -> int:
    """Train what is not trained yet, judge it, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m studies.camvid", description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=list(SCALES), required=True, help="size of the network, length of the run")
    parser.add_argument("--data", type=Path, required=True, help="the folder of CamVid")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and the results")
    parser.add_argument("--device", default="auto", help="cpu or cuda (default: a GPU where there is one)")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode")
    options = parser.parse_args(arguments)
    command = ["python", "-m", "studies.camvid", "--scale", options.scale, "--data", "camvid", "--out", "OUT"]
    file, settings = SCALES[options.scale]
    machine = {"data": str(options.data), "device": options.device, "workers": options.workers}
    folder = options.out / "run"
    most = 2 if options.scale == "smoke" else None

    def study() -> dict[str, str]:
        recipe = read_recipe(RECIPES / file, SegmentationRecipe, **settings, **machine)
        epochs = train(recipe, folder, command)
        told = {**conditions(folder), "scale": options.scale, "command": " ".join(command)}
        seconds = 0.0
        curve = []
        for row in epochs:
            seconds += float(row["seconds"])
            names = ("epoch", "step", "train_loss", "val_miou", "val_pixel_accuracy", "images_per_second")
            curve.append({**{name: row.get(name, "") for name in names}, "train_seconds": round(seconds), **told})
        write_table(options.out / "curve.csv", curve)
        rows = []
        for split in ("val", "test"):
            for name, look in LOOKS.items():
                metrics = judge(folder, options.data, split, look, most)
                figures = metrics.compute()
                classes = {f"iou_{row.name}": round(row.iou, 4) for row in metrics.per_class()}
                rounded = {key: round(figures[key], 4) for key in ("miou", "mean_accuracy", "pixel_accuracy")}
                rows.append({"split": split, "images": metrics.images, "look": name, **rounded, **classes, **told})
                write_table(options.out / "results.csv", rows)
                print(f"{split}, {name}: mIoU {figures['miou']:.4f}, pixel accuracy {figures['pixel_accuracy']:.4f}")
        print(f"{options.out / 'results.csv'} and {options.out / 'curve.csv'}")
        return {}

    return run_study(study)


if __name__ == "__main__":
    sys.exit(main())
