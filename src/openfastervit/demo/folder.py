"""The demo's folder: what is written into it, and how nothing half-written comes to lie there."""

import contextlib
import csv
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from openfastervit.demo.network import CLASSES, METADATA
from openfastervit.demo.report import PAGE, Results, render
from openfastervit.demo.report.pictures import scan_png
from openfastervit.demo.throughput import in_words
from openfastervit.models import FasterViT, save_checkpoint

FILES = ("model.safetensors", "predictions.csv", "metrics.csv", "summary.json", "report.html")


def write(folder: Path, model: FasterViT, results: Results) -> None:
    """All files of the run."""
    save_checkpoint(model, folder / "model.safetensors", metadata=METADATA)
    (folder / "images").mkdir()
    for index in results.digits.held_out[:PAGE]:
        name = _image_name(results.digits.labels[index], index)
        (folder / "images" / name).write_bytes(scan_png(results.digits.scans[index]))
    evaluation = results.evaluation
    _table(
        folder / "predictions.csv",
        ["scan", "label", "predicted", *(f"p{name}" for name in CLASSES)],
        zip(results.digits.held_out, evaluation.labels, evaluation.predicted, *evaluation.probabilities.T, strict=True),
    )
    _table(folder / "metrics.csv", _EPOCH, map(astuple, results.epochs))
    summary = json.dumps(_summary(results), indent=2, ensure_ascii=False) + "\n"
    (folder / "summary.json").write_text(summary, encoding="utf-8")
    (folder / "report.html").write_text(render(results), encoding="utf-8")


def _table(path: Path, head: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """CSV, with six digits of what is not whole."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(head)
        for row in rows:
            table.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])


def _image_name(label: int, index: int) -> str:
    return f"digit-{label}_scan-{index:04d}.png"


_EPOCH = ("epoch", "steps", "loss", "accuracy", "learning_rate", "seconds")
_IMAGE_NAMES = "digit-?_scan-????.png"


def _summary(results: Results) -> dict[str, Any]:
    evaluation = results.evaluation
    return {
        "top1": evaluation.top1,
        "top1_interval_95": list(evaluation.interval()),
        "held_out_images": len(evaluation.labels),
        "misread": len(evaluation.wrong),
        "training_images": len(results.digits.training),
        "interrupted": results.interrupted,
        "seed": results.seed,
        "command": results.command,
        "epochs_planned": results.planned_epochs,
        "steps_per_epoch": results.steps_per_epoch,
        "steps": sum(epoch.steps for epoch in results.epochs),
        "parameters": results.parameters,
        "network": METADATA,
        "carrier_attention": [asdict(habit) for habit in results.looking.habits],
        "throughput": {
            "in_words": in_words(list(results.timings)) if results.timings else None,
            "sizes": [
                {**asdict(timing), "ratio": timing.ratio, "verdict": timing.verdict} for timing in results.timings
            ],
        },
        "seconds": results.seconds,
        "hardware": results.hardware,
        "versions": results.versions,
        "finished": results.finished.isoformat(timespec="seconds"),
    }


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder inside ``out`` to write into, gone afterwards; ``out`` too where nothing came to lie in it."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out} is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out, prefix=".demo-") as folder:
            yield Path(folder)
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            out.rmdir()


def publish(staged: Path, out: Path) -> None:
    """Move all files to their places, the report last. Each is whole at any time: the old one, or the new one."""
    (out / "images").mkdir(exist_ok=True)
    new = sorted((staged / "images").iterdir())
    for file in new:
        file.replace(out / "images" / file.name)
    for file in (out / "images").glob(_IMAGE_NAMES):  # of an earlier run with another page; never a user's own files
        if file.name not in {made.name for made in new}:
            file.unlink()
    for name in FILES:
        (staged / name).replace(out / name)
