"""Pre-training on small images and fine-tuning on larger ones, against training on the larger ones from scratch.

::

    python -m studies.pretrain_finetune --scale cpu --data imagenette-128 --out runs/pretrain-finetune

Equal cost is multiply-adds of a forward pass times images seen, summed over both phases; the table tells the product
of each. Windows are fitted to each size (3 at 96 pixels, 4 at 128): nothing is padded, no parameter depends on it. The
larger size is 128 because the photographs have no more. Both arms have the same seeds; fine-tuning starts at half the
learning rate. Runs that were interrupted go on, those that are done are not done again.
"""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from studies.common.at_once import Failures, train_all
from studies.common.command_line import Options, parser, read_options, run_study
from studies.common.comparison import Scale, Variant, data_for, done, rows_of, runs_of, write_rows
from studies.common.outcome import RESULT, costs
from studies.common.plot import draw_comparison
from studies.common.runs import Run, is_done
from studies.common.scales import fastervit_scales

SMALL, LARGE = 96, 128
"""Sides of the images, pixels."""


@dataclass(frozen=True)
class Lengths:
    """Epochs of each phase, of equal cost in both arms."""

    pretrain: int
    finetune: int
    scratch: int


LENGTHS: Mapping[str, Lengths] = MappingProxyType(
    {"smoke": Lengths(2, 1, 2), "cpu": Lengths(8, 2, 7), "gpu": Lengths(24, 6, 21)}
)
"""A small image costs 0.6 of a large one: it has 0.56 of the tokens and as many carriers. So 8 + 2 epochs cost what 7
do, within 3 %."""

SCALES: Mapping[str, Scale] = MappingProxyType(fastervit_scales(cpu={}, gpu={}))


def variants(scale: str) -> list[Variant]:
    """The phases, at a scale."""
    epochs, rate = LENGTHS[scale], float(SCALES[scale].settings.get("lr", _rate(scale)))

    def phase(name: str, length: int, side: int, base: str | None = None, **settings: Any) -> Variant:
        shared = {"epochs": length, "warmup_epochs": 0.1 * length, "img_size": [side], "windows": "fit"}
        return Variant(name, {**shared, **settings}, base)

    return [
        phase("pretrain", epochs.pretrain, SMALL),
        phase("finetune", epochs.finetune, LARGE, "scratch", lr=rate / 2),
        phase("scratch", epochs.scratch, LARGE),
    ]


def _rate(scale: str) -> float:
    return Run("rate", 0, str(SCALES[scale].recipe)).resolved().lr


def main(arguments: list[str] | None = None) -> int:
    """Train what is not trained yet, and write the table and the plot."""
    names = ("pretrain", "finetune", "scratch")
    options = read_options("pretrain_finetune", names, arguments, parser("pretrain_finetune", __doc__))
    return run_study(lambda: _study(options))


def _study(options: Options) -> Failures:
    scale = SCALES[options.scale]
    table = options.out / "results.csv"
    phases = variants(options.scale)
    data = data_for(scale, options)
    runs = [run for run in runs_of(phases, scale, options, data) if run.name in options.only]
    failures: Failures = {}

    def write(now: Failures) -> None:
        told = {**failures, **now}
        rows = [{**row, **_cost(row["variant"], options)} for row in rows_of(phases, scale, options, told)]
        write_rows(table, rows)
        draw_comparison(rows, table.with_suffix(".png"))

    def train(chosen: list[Run]) -> None:
        failures.update(
            train_all(chosen, options.out, command=options.command, at_once=options.at_once, after_each=write)
        )

    train([run for run in runs if run.name != "finetune"])
    first = {run.seed: run for run in runs_of([phases[0]], scale, options, data)}
    train(
        [
            dataclasses.replace(
                run, settings={**run.settings, "weights": str(first[run.seed].folder(options.out) / RESULT)}
            )
            for run in runs
            if run.name == "finetune" and is_done(first[run.seed], options.out)
        ]
    )
    write(failures)
    print(f"{table} and {table.with_suffix('.png')}")
    return failures


def _cost(name: str, options: Options) -> dict[str, Any]:
    """Images seen by a run of the phase, and what they cost; fine-tuning's total has the pre-training in it."""
    seen = done(name, options)
    if not seen:
        return {}
    seed, outcome = next(iter(seen.items()))
    before = _cost("pretrain", options) if name == "finetune" else {}
    each = costs(Run(name, seed, "").folder(options.out))["multiply_adds_in_64"]
    own = each * outcome.images
    return {
        "images_seen": outcome.images,
        "cost_multiply_adds": own,
        "total_multiply_adds": own + before.get("total_multiply_adds", 0),
    }


if __name__ == "__main__":
    sys.exit(main())
