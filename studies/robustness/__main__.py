"""Accuracy of hierarchical, windowed and full attention on corrupted images.

::

    python -m studies.robustness --scale cpu --data imagenette-128 --out runs/robustness --runs runs/attention-designs

Noise, blur, JPEG, contrast and shift at five strengths (`corruptions.py` has them), on the validation images; no
network has learnt from any. ``--runs`` names the folder of ``studies.attention_designs``; without it the networks are
trained first, as there. The row of strength ``mean`` is over all five. What was measured is kept in ``accuracy.csv``
and not measured again.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from studies.attention_designs.designs import SCALES, VARIANTS
from studies.common.at_once import Failures
from studies.common.command_line import Options, parser, read_options, run_study
from studies.common.comparison import accuracy, beside, compare, data_for
from studies.common.outcome import RESULT, provenance, read_outcome
from studies.common.plot import COLOURS, new_figure, save, source
from studies.common.runs import Run, seeds_of
from studies.common.spread import spread
from studies.common.table import write_table
from studies.robustness.accuracy import CASES, measure
from studies.robustness.corruptions import STRENGTHS

DESIGNS = ("hat", "window", "global")
Found = Mapping[tuple[str, str, int], float]


def main(arguments: list[str] | None = None) -> int:
    """Train where there are no runs, measure, and write the table and the plot."""
    found = parser("robustness", __doc__)
    found.add_argument("--runs", type=Path, help="folder of studies.attention_designs (default: train them)")
    options = read_options("robustness", DESIGNS, arguments, found)
    runs: Path | None = found.parse_args(arguments).runs
    return run_study(lambda: _study(options, runs))


def _study(options: Options, given: Path | None) -> Failures:
    failures: Failures = {}
    scale = SCALES[options.scale]
    command = " ".join(options.command) + ("" if given is None else " --runs RUNS")
    runs = given
    if runs is None:
        runs = options.out
        chosen = [variant for variant in VARIANTS if variant.name in DESIGNS]
        failures = compare(chosen, scale, options, after_each=lambda rows: None)
    done = {
        design: [seed for seed in seeds_of(design, runs) if read_outcome(Run(design, seed, "").folder(runs))]
        for design in options.only
    }
    for design, seeds in done.items():
        if not seeds and not failures:
            raise ValueError(f"--runs {runs} has no run of {design} that is done; leave it out to train them")
    checkpoints = {
        f"{design}-seed{seed}": runs / f"{design}-seed{seed}" / RESULT for design in done for seed in done[design]
    }
    if not checkpoints:
        return failures
    table = options.out / "results.csv"
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    data = data_for(scale, options) / "val"
    precision = str(read_outcome(next(iter(checkpoints.values())).parent).recipe.precision)  # type: ignore[union-attr]
    for found in measure(checkpoints, data, options.out / "accuracy.csv", device=device, precision=precision):
        rows = _rows(found, done, runs, {"precision": precision, "command": command}, options.scale)
        write_table(table, rows)
    draw(rows, table.with_suffix(".png"))
    print(f"{table} and {table.with_suffix('.png')}")
    return failures


def _rows(
    found: Found, done: Mapping[str, Sequence[int]], runs: Path, told: Mapping[str, str], scale: str
) -> list[dict[str, Any]]:
    """A row for each corruption, strength and design that is measured."""
    outcomes = {
        design: [read_outcome(Run(design, seed, "").folder(runs)) for seed in seeds] for design, seeds in done.items()
    }
    facts = {
        design: provenance([outcome for outcome in outcomes[design] if outcome is not None]) for design in outcomes
    }
    rows = []
    for kind, strength, value in [*CASES, *((kind, -1, "") for kind in STRENGTHS)]:
        by_design = {design: _top1(found, design, seeds, kind, strength) for design, seeds in done.items()}
        for design, top1 in by_design.items():
            if not top1:
                continue
            row: dict[str, Any] = {
                "corruption": kind,
                "strength": "mean" if strength < 0 else strength,
                "value": value,
                "variant": design,
                "scale": scale,
                **accuracy(top1),
                "compared_with": "" if design == "hat" else "hat",
                "difference": "",
                "verdict": "",
            }
            if design != "hat" and by_design.get("hat"):
                row |= beside(list(top1.values()), list(by_design["hat"].values()))
            epochs = {outcome.epochs for outcome in outcomes[design] if outcome is not None}
            row |= {"epochs": "; ".join(map(str, sorted(epochs)))}
            rows.append({**row, **facts[design], **told})
    return rows


def _top1(found: Found, design: str, seeds: Sequence[int], kind: str, strength: int) -> dict[int, float]:
    """Of each seed; of strength -1, the mean over all of them once they are there."""
    wanted = range(1, len(STRENGTHS[kind]) + 1) if strength < 0 else (strength,)
    keys = {seed: [(f"{design}-seed{seed}", kind, one) for one in wanted] for seed in seeds}
    return {
        seed: statistics.fmean(found[key] for key in keys[seed])
        for seed in seeds
        if all(key in found for key in keys[seed])
    }


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Top-1 over the strength, a panel a corruption; strength 0 is the clean images."""
    figure, panels = new_figure(len(STRENGTHS), width=15, height=3.6)
    for axes, kind in zip(panels, STRENGTHS, strict=True):
        for design, colour in zip(DESIGNS, COLOURS, strict=False):
            own = [
                row
                for row in rows
                if row["variant"] == design and row["corruption"] in ("none", kind) and row["strength"] != "mean"
            ]
            values = [spread([float(one) for one in row["top1_each_seed"].split()]) for row in own]
            at = [int(row["strength"]) for row in own]
            axes.plot(at, [value.mean for value in values], "o-", color=colour, label=design, markersize=4)
            axes.fill_between(
                at, [value.least for value in values], [value.most for value in values], color=colour, alpha=0.15
            )
        axes.set(title=kind, xlabel="strength")
    panels[0].set_ylabel("top-1, %: mean and range of the seeds")
    panels[-1].legend(frameon=False)
    figure.suptitle(source(rows[0]), fontsize=9)
    save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
