"""Variants of a network, each trained from several seeds by one recipe, and the table that compares them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studies.common.at_once import Failures, train_all
from studies.common.command_line import Options, cores
from studies.common.outcome import Outcome, costs, provenance, read_outcome
from studies.common.runs import Run, seeds_of
from studies.common.small_data import few_images
from studies.common.spread import spread, verdict
from studies.common.table import write_table


@dataclass(frozen=True)
class Variant:
    """One of what is compared."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """In place of the recipe's; ``model_options`` are added to the scale's, one by one."""
    compared_with: str | None = None
    """The variant that differs from it in what is studied and in nothing else."""
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    """Further columns of the table."""


@dataclass(frozen=True)
class Scale:
    """How large the networks are, how long they learn, on how many images."""

    recipe: Path
    settings: Mapping[str, Any]
    """In place of the recipe's, for all variants; ``model_options`` are the whole of them."""
    few: tuple[int, int] | None = None
    """Only so many images a class, to learn from and to be judged on."""
    modules: tuple[str, ...] = ()
    """That register networks with timm."""


def data_for(scale: Scale, options: Options) -> Path:
    """The data's folder, or that of a few images of it.

    Raises:
        ValueError: If there is no data.
    """
    if not options.data.is_dir():
        raise ValueError(f"--data {options.data} is no folder; give one with train/ and val/, a folder a class")
    if scale.few is None:
        return options.data
    return few_images(options.data, options.out, train=scale.few[0], val=scale.few[1])


def runs_of(variants: Sequence[Variant], scale: Scale, options: Options, data: Path) -> list[Run]:
    """The first seed of all variants, then the next: whenever it is stopped, what is there can be compared."""
    return [_run(variant, seed, scale, options, data) for seed in options.seeds for variant in variants]


def _run(variant: Variant, seed: int, scale: Scale, options: Options, data: Path) -> Run:
    own, shared = dict(variant.settings), dict(scale.settings)
    network = {**shared.pop("model_options", {}), **own.pop("model_options", {})}
    machine: dict[str, Any] = {"data": str(data), "device": options.device}
    if options.at_once > 1:
        # Each of several processes decodes its own images: workers beside them would only wait for a core.
        machine["workers"] = 0 if options.scale == "cpu" else max(1, cores() // options.at_once)
    settings = {**shared, **own, "model_options": network, **machine}
    return Run(variant.name, seed, str(scale.recipe), settings, scale.modules)


def compare(
    variants: Sequence[Variant],
    scale: Scale,
    options: Options,
    *,
    after_each: Callable[[list[dict[str, Any]]], None],
) -> Failures:
    """Train all variants that are asked for, and tell of all that are done after each run.

    Args:
        variants: All of them.
        scale: How.
        options: Which, with which seeds, where.
        after_each: Takes the rows: to write them down, to draw them.

    Raises:
        Stopped: If a signal asked for it.
        ValueError: If something is not as asked for.
    """
    data = data_for(scale, options)
    runs = runs_of([variant for variant in variants if variant.name in options.only], scale, options, data)

    def tell(failures: Failures) -> None:
        after_each(rows_of(variants, scale, options, failures))

    failures = train_all(runs, options.out, command=options.command, at_once=options.at_once, after_each=tell)
    tell(failures)
    return failures


def rows_of(
    variants: Sequence[Variant], scale: Scale, options: Options, failures: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """A row for each variant with a run that is done, or that failed.

    Args:
        variants: In the table's order.
        scale: Theirs.
        options: Where the runs are.
        failures: What went wrong, by the runs' titles.
    """
    found = {variant.name: done(variant.name, options) for variant in variants}
    rows = []
    for variant in variants:
        outcomes = found[variant.name]
        failed = {
            title: text for title, text in (failures or {}).items() if title.rpartition("-seed")[0] == variant.name
        }
        if outcomes or failed:
            base = found.get(variant.compared_with or "", {})
            rows.append(_row(variant, outcomes, base, failed, options))
    return rows


def done(name: str, options: Options) -> dict[int, Outcome]:
    """A variant's runs that are done, by seed, those of earlier commands too."""
    found = {seed: read_outcome(Run(name, seed, "").folder(options.out)) for seed in seeds_of(name, options.out)}
    return {seed: outcome for seed, outcome in found.items() if outcome is not None}


def _row(
    variant: Variant,
    outcomes: Mapping[int, Outcome],
    base: Mapping[int, Outcome],
    failed: Mapping[str, str],
    options: Options,
) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": variant.name, **variant.facts, "scale": options.scale}
    row |= {"compared_with": variant.compared_with or ""}
    if outcomes:
        recipes = [outcome.recipe for outcome in outcomes.values()]
        row |= {**costs(Run(variant.name, next(iter(outcomes)), "").folder(options.out))}
        row |= accuracy({seed: outcome.top1[-1] for seed, outcome in outcomes.items()})
        row |= {
            "difference": "",
            "verdict": "",
            "epochs": recipes[0].total_epochs,
            "img_size": " x ".join(map(str, recipes[0].img_size or [])),
            "train_seconds": round(statistics.fmean(outcome.seconds for outcome in outcomes.values())),
            "precision": recipes[0].precision,
        }
        if base:
            row |= beside(
                [outcome.top1[-1] for outcome in outcomes.values()], [outcome.top1[-1] for outcome in base.values()]
            )
        row |= provenance(list(outcomes.values()))
    row["command"] = " ".join(options.command)
    row["failed"] = "; ".join(f"{title}: {text}" for title, text in failed.items())
    return row


def accuracy(top1: Mapping[int, float]) -> dict[str, Any]:
    """Top-1 of each seed, in percent, and their mean and range."""
    found = spread(list(top1.values()))
    return {
        "seeds": " ".join(map(str, top1)),
        "top1_each_seed": " ".join(f"{value:.2f}" for value in top1.values()),
        "top1": f"{found.mean:.2f}",
        "top1_min": f"{found.least:.2f}",
        "top1_max": f"{found.most:.2f}",
    }


def beside(top1: Sequence[float], base: Sequence[float]) -> dict[str, str]:
    """The difference of the means, in points, and the verdict."""
    return {
        "difference": f"{statistics.fmean(top1) - statistics.fmean(base):+.2f}",
        "verdict": verdict(top1, base),
    }


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table, replaced whole; the longest row tells the order of the columns."""
    columns = max(([*row] for row in rows), key=len, default=[])
    write_table(path, rows, [*columns, *dict.fromkeys(name for row in rows for name in row if name not in columns)])
