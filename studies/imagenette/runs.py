"""One run of the study, through the package's public API."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openfastervit.training.recipe import ClassificationRecipe, read_recipe
from openfastervit.training.run import resume, start
from studies.imagenette.networks import StudyNetwork


@dataclass(frozen=True)
class RunPlan:
    """What is trained, and how."""

    networks: Mapping[str, StudyNetwork]
    recipe: Path
    settings: Mapping[str, Any]
    """In place of the recipe's."""


def run_folder(out: Path, name: str, seed: int) -> Path:
    """Where a run is kept."""
    return out / f"{name}-seed{seed}"


def train_once(plan: RunPlan, name: str, seed: int, *, data: str, out: Path, device: str) -> None:
    """Train a network, or go on with its run where there is one; nothing where it is done."""
    folder = run_folder(out, name, seed)
    if (folder / "recipe.yaml").exists():
        resume(folder, device=device, data=data)
        return
    network = plan.networks[name]
    options = dict(network.options)
    changed = {
        "model": network.model,
        "drop_path": options.pop("drop_path_rate"),
        "model_options": options,
        "seed": seed,
        "data": data,
        "device": device,
    }
    recipe = read_recipe(plan.recipe, ClassificationRecipe, **{**plan.settings, **changed})
    start(recipe, folder, ["python", "-m", "studies.imagenette"])
