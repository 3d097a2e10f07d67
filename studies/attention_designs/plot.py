"""Accuracy over measured throughput."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.common.plot import COLOURS, bars, new_figure, save, source


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Each design's top-1, its seeds' range, over images a second and their quartiles.

    Left: the network that was trained. Right: the speed of fastervit_0 at 224 pixels with the same design.
    """
    rows = [row for row in rows if row.get("top1_each_seed") and row.get("images_per_second")]
    if not rows:  # speed is measured at the end
        return
    figure, panels = new_figure(2, width=11, height=4.5)
    for axes, prefix, title in (
        (panels[0], "", "the network that was trained"),
        (panels[1], "fastervit_0_", "speed of fastervit_0 at 224 pixels"),
    ):
        for row, colour in zip(rows, COLOURS, strict=False):
            if not row.get(f"{prefix}images_per_second"):  # it could not be measured; the table says why
                continue
            mean, above_and_below = bars([float(value) for value in row["top1_each_seed"].split()])
            rate, low, high = (float(row[f"{prefix}images_per_second{part}"]) for part in ("", "_q1", "_q3"))
            axes.errorbar(
                rate,
                mean,
                yerr=above_and_below,
                xerr=([max(0.0, rate - low)], [max(0.0, high - rate)]),
                fmt="o",
                capsize=3,
                color=colour,
                label=row["variant"],
            )
        axes.set(xlabel="images a second", ylabel="top-1, %: mean and range of the seeds", title=title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.suptitle(source(rows[0]), fontsize=9)
    save(figure, path)
