"""The plot of the study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.common.plot import new_figure, save

COLOURS = {
    "hat": "#e8590c",
    "hat-2-levels": "#f59f00",
    "window": "#3b82d0",
    "shifted-window": "#0c8599",
    "twins": "#2f9e44",
    "edgevit": "#9c36b5",
    "global": "#6b7280",
}
LINES = {"torch-folded": "-", "torch-eager": ":"}


def draw(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time, memory and multiply-adds over the side of the images, by pixel; both axes logarithmic."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    panels = {
        "ms a megapixel": "ms_per_megapixel",
        "MB a megapixel and image": "memory_mb_per_megapixel",
        "multiply-adds a pixel": "multiply_adds_per_pixel",
    }
    figure, axes = new_figure(len(panels), width=15, height=5)
    for axis, (title, column) in zip(axes, panels.items(), strict=True):
        for design, colour in COLOURS.items():
            own = [line for line in lines if line["attention"] == design and line.get(column, "") != ""]
            # Counts are the same on every engine: one line through all sides.
            engines = [None] if column == "multiply_adds_per_pixel" else list(LINES)
            for engine in engines:
                rows = [line for line in own if engine is None or line["engine"] == engine]
                points = sorted({(int(row["side"]), float(row[column])) for row in rows})
                if points:
                    style = "-" if engine is None else LINES[engine]
                    axis.plot(*zip(*points, strict=True), style, marker="o", color=colour, markersize=4)
        axis.set(title=title, xlabel="side of the image, pixels", xscale="log", yscale="log")
        ticks = sorted({int(line["side"]) for line in lines if line.get(column, "") != ""})
        axis.set_xticks(ticks, [str(tick) for tick in ticks], rotation=60)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    for design, colour in COLOURS.items():
        axes[0].plot([], [], color=colour, label=design)
    for engine, style in LINES.items():
        axes[0].plot([], [], style, color="black", label=engine)
    axes[0].legend(fontsize=7, frameon=False)
    first = lines[0]
    figure.suptitle(
        f"{first['processor']}, {first['cores']} cores, {first.get('gpus', 'no GPU used')}; {first['precision']}, "
        f"batch {first['batch_size']}; torch {first['torch']}",
        fontsize=10,
    )
    save(figure, path)
