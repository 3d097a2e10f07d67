"""The plot of the study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {"hierarchical": "#e8590c", "windowed": "#3b82d0", "full": "#6b7280"}


def draw(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time, memory and multiply-adds a megapixel over the side of the images; both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    panels = {
        "ms a megapixel": "ms_per_megapixel",
        "MB a megapixel and image": "memory_mb_per_megapixel",
        "multiply-adds a pixel": "multiply_adds_per_pixel",
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 4), layout="constrained")
    for axis, (title, column) in zip(axes, panels.items(), strict=True):
        for kind, colour in COLOURS.items():
            rows = [row for row in lines if row["attention"] == kind and row[column] != ""]
            sides = [int(row["side"]) for row in rows]
            axis.plot(sides, [float(row[column]) for row in rows], "o-", color=colour, label=kind, markersize=4)
            if column == "multiply_adds_per_pixel":
                values = [float(row["formula_multiply_adds_per_pixel"]) for row in rows]
                axis.plot(sides, values, "x", color="black", markersize=6, label="formula" if kind == "full" else None)
        axis.set(title=title, xlabel="side of the image, in pixels", xscale="log", yscale="log")
        ticks = sorted({int(row["side"]) for row in lines})
        axis.set_xticks(ticks, [str(tick) for tick in ticks], rotation=60)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.grid(alpha=0.3)
    axes[-1].legend()
    first = lines[0]
    figure.suptitle(
        f"{first['processor']}, {first['cores']} cores, {first.get('gpus', 'no GPU used')}; {first['engine']}, "
        f"{first['precision']}, batch {first['batch_size']}; torch {first['torch']}",
        fontsize=10,
    )
    part = path.with_suffix(".part.png")
    figure.savefig(part, dpi=110)
    plt.close(figure)
    part.replace(path)
