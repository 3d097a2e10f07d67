"""The table and the plot of the study, from its run folders."""

import statistics
from pathlib import Path
from typing import Any

from studies.common.outcome import costs, provenance, read_outcome
from studies.common.plot import new_figure, save
from studies.common.runs import Run, seeds_of
from studies.common.table import write_table
from studies.imagenette.runs import RunPlan

COLUMNS = (
    "network",
    "timm_name",
    "seed",
    "scale",
    "epochs",
    "parameters",
    "multiply_adds",
    "multiply_adds_in_64",
    "top1",
    "best_top1",
    "val_loss",
    "train_seconds",
    "images_per_second",
    "precision",
    "processor",
    "cores",
    "gpus",
    "python",
    "torch",
    "timm",
    "openfastervit",
    "revision",
    "command",
)


def write_results(out: Path, plan: RunPlan, scale: str, command: str) -> Path:
    """A row for each run that is done, and a plot of top-1 over epochs; both are replaced whole.

    Returns:
        The CSV.
    """
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[list[float]]] = {}
    for run in (Run(name, seed, "") for name in plan.networks for seed in seeds_of(name, out)):
        folder = run.folder(out)
        outcome = read_outcome(folder)
        if outcome is None:
            continue
        curves.setdefault(run.name, []).append(outcome.top1)
        rows.append(
            {
                "network": run.name,
                "timm_name": outcome.recipe.model,
                "seed": run.seed,
                "scale": scale,
                "epochs": outcome.epochs,
                **costs(folder),
                "top1": round(outcome.top1[-1], 2),
                "best_top1": round(max(outcome.top1), 2),
                "val_loss": round(outcome.val_loss, 4),
                "train_seconds": round(outcome.seconds),
                "images_per_second": round(outcome.images_per_second, 1),
                "precision": outcome.recipe.precision,
                **provenance([outcome]),
                "command": command,
            }
        )
    table = out / "results.csv"
    write_table(table, rows, COLUMNS)
    if curves:
        draw(curves, table.with_suffix(".png"))
    return table


def draw(curves: dict[str, list[list[float]]], png: Path) -> None:
    """Top-1 over epochs: each network's mean over its seeds, and the range between them."""
    figure, (axes,) = new_figure()
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
    axes.legend(loc="lower right", frameon=False)
    save(figure, png)
