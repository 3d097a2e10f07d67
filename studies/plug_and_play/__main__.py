"""timm's Swin-T with and without hierarchical attention in place of its window attention.

::

    python -m studies.plug_and_play --scale cpu --data imagenette-128 --out runs/plug-and-play

The same widths, depths, heads, windows, recipe and seeds; and a wider Swin-T with as many multiply-adds as the one with
hierarchical attention. Runs that were interrupted go on, those that are done are not
done again. The table and the plot are written after each run.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from studies.common.at_once import Failures
from studies.common.command_line import Options, parser, read_options, run_study
from studies.common.comparison import Scale, Variant, compare, write_rows
from studies.common.plot import draw_comparison
from studies.common.scales import fastervit_scales
from studies.imagenette.networks import FULL, POCKET
from studies.plug_and_play.networks import SWIN, SWIN_HAT

VARIANTS = (
    Variant("swin", {"model": SWIN}),
    Variant("swin-hat", {"model": SWIN_HAT}, compared_with="swin"),
    Variant("swin-wide", {"model": SWIN}, compared_with="swin-hat"),
)
"""Carriers cost multiply-adds: the third is a Swin-T as wide as it takes to have as many as ``swin-hat``."""

WIDE = {"smoke": 10, "cpu": 22, "gpu": 108}
"""Channels of its first stage: within 4 % of the multiply-adds of ``swin-hat``, in a batch of 64 (not in ``smoke``)."""


def _scales() -> dict[str, Scale]:
    tiny = {**POCKET["swin"].options, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    networks = {"smoke": tiny, "cpu": POCKET["swin"].options, "gpu": FULL["swin"].options}
    scales = fastervit_scales(cpu={"epochs": 4, "warmup_epochs": 0.5}, gpu={"epochs": 30, "warmup_epochs": 3})
    found = {}
    for name, scale in scales.items():
        options = {key: value for key, value in networks[name].items() if key != "drop_path_rate"}
        settings = {**scale.settings, "model_options": options}
        found[name] = Scale(scale.recipe, settings, scale.few, modules=("studies.plug_and_play.networks",))
    return found


SCALES: Mapping[str, Scale] = MappingProxyType(_scales())


def variants(scale: str) -> list[Variant]:
    """What is compared, at a scale."""
    wide = {"model_options": {"embed_dim": WIDE[scale]}}
    return [
        replace(variant, settings={**variant.settings, **wide}) if variant.name == "swin-wide" else variant
        for variant in VARIANTS
    ]


def main(arguments: list[str] | None = None) -> int:
    """Train what is not trained yet, and write the table and the plot."""
    names = [variant.name for variant in VARIANTS]
    options = read_options("plug_and_play", names, arguments, parser("plug_and_play", __doc__))
    return run_study(lambda: _study(options))


def _study(options: Options) -> Failures:
    table = options.out / "results.csv"

    def write(rows: list[dict[str, Any]]) -> None:
        write_rows(table, rows)
        draw_comparison(rows, table.with_suffix(".png"))

    failures = compare(variants(options.scale), SCALES[options.scale], options, after_each=write)
    print(f"{table} and {table.with_suffix('.png')}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
