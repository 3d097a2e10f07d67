"""The table and the plot of the study, from its run folders."""

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from openfastervit.benchmarking.complexity import multiply_adds
from studies.imagenette.networks import CLASSES, IMAGE_SIZE, build
from studies.imagenette.runs import RunPlan, run_folder

COLUMNS = (
    "network",
    "timm_name",
    "seed",
    "epochs",
    "parameters",
    "multiply_adds",
    "top1",
    "best_top1",
    "val_loss",
    "train_seconds",
    "images_per_second",
    "precision",
    "processor",
    "cores",
    "gpus",
    "torch",
    "timm",
    "revision",
    "command",
)


def write_results(out: Path, plan: RunPlan, command: str) -> Path:
    """A row for each run that is done, and a plot of top-1 over epochs; both are replaced whole.

    Returns:
        The CSV.
    """
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[list[float]]] = {}
    for name, network in plan.networks.items():
        model = build(network, num_classes=CLASSES)
        facts = {
            "network": name,
            "timm_name": network.model,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "multiply_adds": multiply_adds(model, IMAGE_SIZE, IMAGE_SIZE),
        }
        for seed in range(1000):
            folder = run_folder(out, name, seed)
            if not folder.exists():
                if seed >= 10:
                    break
                continue
            row = _row(folder)
            if row is not None:
                rows.append({**facts, "seed": seed, "command": command, **row[0]})
                curves.setdefault(name, []).append(row[1])
    table = out / "results.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if curves:
        draw(curves, table.with_suffix(".png"))
    return table


def _row(folder: Path) -> tuple[dict[str, Any], list[float]] | None:
    """The figures of a run and its top-1 after each epoch; None where it is not done."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    metrics = folder / "metrics.csv"
    if not metrics.exists():
        return None
    with metrics.open(newline="", encoding="utf-8") as file:
        epochs = list(csv.DictReader(file))
    if len(epochs) < recipe["epochs"] + recipe["cooldown_epochs"]:
        return None
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["starts"][0]
    top1 = [float(epoch["val_top1"]) for epoch in epochs if epoch["val_top1"]]
    seconds = sum(float(epoch["seconds"]) for epoch in epochs)
    hardware, versions, git = environment["hardware"], environment["versions"], environment["git"]
    return {
        "epochs": len(epochs),
        "top1": round(top1[-1], 2),
        "best_top1": round(max(top1), 2),
        "val_loss": round(float(epochs[-1]["val_loss"]), 4),
        "train_seconds": round(seconds),
        "images_per_second": round(statistics.median(float(epoch["images_per_second"]) for epoch in epochs), 1),
        "precision": recipe["precision"],
        "processor": hardware["processor"],
        "cores": hardware["cores"],
        "gpus": hardware["gpus"],
        "torch": versions["torch"],
        "timm": versions["timm"],
        "revision": (git or {}).get("revision", ""),
    }, top1


def draw(curves: dict[str, list[list[float]]], png: Path) -> None:
    """Top-1 over epochs: each network's mean over its seeds, and the range between them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, runs in curves.items():
        length = min(len(run) for run in runs)
        epochs = list(range(1, length + 1))
        columns = list(zip(*(run[:length] for run in runs), strict=True))
        means = [statistics.mean(column) for column in columns]
        (line,) = axes.plot(
            epochs,
            means,
            label=f"{name}: {means[-1]:.1f} % ({len(runs)} seed{'s' if len(runs) > 1 else ''})",
            linewidth=2,
        )
        axes.fill_between(
            epochs,
            [min(column) for column in columns],
            [max(column) for column in columns],
            color=line.get_color(),
            alpha=0.15,
            linewidth=0,
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 on the validation images, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(png)
