"""What a run came to, read from its folder."""

import csv
import functools
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from openfastervit.benchmarking.complexity import count_parameters, multiply_adds
from openfastervit.models import read_metadata
from openfastervit.tasks.classification import build_network, preparation
from openfastervit.training.recipe import ClassificationRecipe, make_recipe

RESULT = "last.safetensors"
"""The weights a run ends with: all figures are theirs. The best epoch's were chosen on the images that judge."""


@dataclass(frozen=True)
class Outcome:
    """A run that is done."""

    recipe: ClassificationRecipe
    epochs: int
    images: int
    """Seen, each as often as it was."""
    top1: list[float]
    """In percent, after each epoch that was evaluated; the last one is the result."""
    val_loss: float
    seconds: float
    """Of training, without evaluation."""
    images_per_second: float
    """The median epoch's."""
    environment: dict[str, Any]
    """Of its first start: hardware, versions, git, command."""


def read_outcome(folder: Path) -> Outcome | None:
    """The figures of a run; None where it is not done."""
    metrics = folder / "metrics.csv"
    if not metrics.exists() or not (folder / RESULT).exists():
        return None
    return _outcome(folder, metrics.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1024)  # a study reads all its runs after each of them
def _outcome(folder: Path, changed: int) -> Outcome | None:
    """As ``read_outcome``; ``changed`` is when the table was."""
    recipe = stored_recipe(folder)
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        epochs = list(csv.DictReader(file))
    if len(epochs) < recipe.total_epochs:
        return None
    return Outcome(
        recipe=recipe,
        epochs=len(epochs),
        images=int(epochs[-1]["step"]) * recipe.batch_size * recipe.accumulate,
        top1=[float(epoch["val_top1"]) for epoch in epochs if epoch["val_top1"]],
        val_loss=float(epochs[-1]["val_loss"]),
        seconds=sum(float(epoch["seconds"]) for epoch in epochs),
        images_per_second=statistics.median(float(epoch["images_per_second"]) for epoch in epochs),
        environment=json.loads((folder / "environment.json").read_text(encoding="utf-8"))["starts"][0],
    )


def stored_recipe(folder: Path) -> ClassificationRecipe:
    """The settings of a run. Its first weights are left out: they may be gone, and its network does not need them."""
    settings = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    return make_recipe({**settings, "weights": None, "pretrained": False}, ClassificationRecipe)


@functools.lru_cache(maxsize=1024)
def costs(folder: Path) -> Mapping[str, int]:
    """Parameters and multiply-adds of a run's network, at the size of its images.

    Multiply-adds are those of an image alone, and of one in a batch of 64: position biases are computed once a pass,
    which weighs in small networks.
    """
    recipe = stored_recipe(folder)
    classes = read_metadata(folder / RESULT)["classes"]
    network = build_network(recipe, len(classes))
    height, width = preparation(recipe)["input_size"][1:]
    return {
        "parameters": count_parameters(network),
        "multiply_adds": multiply_adds(network, height, width),
        "multiply_adds_in_64": round(multiply_adds(network, height, width, batch=64) / 64),
    }


def provenance(outcomes: list[Outcome]) -> dict[str, str]:
    """Hardware, versions and revision of some runs; where they differ, all of them."""
    found: dict[str, dict[str, None]] = {}
    for outcome in outcomes:
        environment = outcome.environment
        git = environment["git"] or {"revision": "", "dirty": False}
        facts = {
            "processor": environment["hardware"]["processor"],
            "cores": environment["hardware"]["cores"],
            "gpus": environment["hardware"].get("gpus", ""),
            **{name: environment["versions"].get(name, "") for name in ("python", "torch", "timm", "openfastervit")},
            "revision": f"{git['revision']}{' with changes' if git['dirty'] else ''}",
        }
        for name, value in facts.items():
            found.setdefault(name, {})[str(value)] = None
    return {name: "; ".join(values) for name, values in found.items()}
