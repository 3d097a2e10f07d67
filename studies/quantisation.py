"""Accuracy of a trained network on each engine and in each precision, int8 above all.

::

    python -m studies.quantisation --checkpoint RUN/best.safetensors --data imagenette-128 --out quantisation.csv

Ranges of int8 come from training images, accuracy is measured on the validation images, by one checkpoint for all.
``agreement`` is the share of images whose best class is that of the float32 network in eager PyTorch. fp8 is emulated:
the same products as on a GPU that has them, summed in another order.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import torch
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.datasets import ImageFolder

from openfastervit import environment
from openfastervit.inference import load_classifier
from openfastervit.inference.engines import ENGINES, PRECISIONS, EngineError, Settings, create_engine, installed_engines

CALIBRATION = 300
"""Images, evenly over the training set."""


def main(arguments: list[str] | None = None) -> int:
    """Measure every engine in every precision and write the table."""
    parser = argparse.ArgumentParser(prog="python -m studies.quantisation", description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="a classifier trained on the data")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/, a folder a class")
    parser.add_argument("--out", type=Path, required=True, help="the CSV")
    parser.add_argument("--engines", nargs="+", help="names; by default all of CPUs that build in seconds")
    parser.add_argument(
        "--precisions", nargs="+", default=["fp32", "bf16", "fp8", "int8"], choices=PRECISIONS, help="of each"
    )
    parser.add_argument("--images", type=int, help="of the validation set, evenly over it; by default all")
    options = parser.parse_args(arguments)
    network, classes, preparation = load_classifier(options.checkpoint)
    transform = create_transform(**preparation, is_training=False)
    train, val = (ImageFolder(str(options.data / part), transform) for part in ("train", "val"))
    if tuple(val.classes) != tuple(classes):
        raise SystemExit(
            f"{options.checkpoint} tells {len(classes)} classes that are not the folders of {options.data}"
        )
    calibration = torch.stack([train[i][0] for i in _evenly(len(train), CALIBRATION)])
    size = calibration.shape[2], calibration.shape[3]
    images, labels = zip(*(val[i] for i in _evenly(len(val), options.images or len(val))), strict=True)
    x, y = torch.stack(images), torch.tensor(labels)
    names = options.engines or [
        name for name in installed_engines() if not ENGINES[name].compiles and ENGINES[name].runs_on("cpu")
    ]
    about = {
        **environment.hardware(),
        **environment.versions(("torch", "timm", "onnxruntime", "openvino", "nncf")),
        "command": "python -m studies.quantisation --checkpoint RUN/best.safetensors --data imagenette-128 "
        "--out quantisation.csv" + (f" --engines {' '.join(options.engines)}" if options.engines else ""),
    }
    reference: Tensor | None = None
    rows = []
    for name in ["torch-eager", *(name for name in names if name != "torch-eager")]:
        for precision in ENGINES[name].precisions:
            if precision not in options.precisions or (name == "torch-eager" and precision != "fp32"):
                continue  # the plain network is the reference, and eager kernels of low precision may crawl
            settings = Settings(size=size, precision=precision, batch_size=16, calibration=calibration)
            started = time.perf_counter()
            try:
                engine = create_engine(network, name, settings)
            except EngineError as error:
                print(f"{name} {precision}: {error}", file=sys.stderr)
                continue
            built = time.perf_counter() - started
            logits = torch.cat([engine(batch).cpu() for batch in x.split(16)])
            engine.close()
            if reference is None:
                reference = logits
            float_top1, top1 = (float((found.argmax(1) == y).float().mean()) * 100 for found in (reference, logits))
            rows.append(
                {
                    "engine": name,
                    "precision": precision,
                    "top1": f"{top1:.2f}",
                    "difference_points": f"{top1 - float_top1:+.2f}",
                    "agreement": f"{float((logits.argmax(1) == reference.argmax(1)).float().mean()):.4f}",
                    "images": len(y),
                    "size": f"{size[0]}x{size[1]}",
                    "build_seconds": f"{built:.0f}",
                    **about,
                }
            )
            print(
                f"{name} {precision}: top-1 {top1:.2f} % ({top1 - float_top1:+.2f} points)", file=sys.stderr, flush=True
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return 0


def _evenly(available: int, wanted: int) -> list[int]:
    count = min(available, wanted)
    return [i * available // count for i in range(count)]


if __name__ == "__main__":
    sys.exit(main())
