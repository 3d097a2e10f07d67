"""What the study trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.common.runs import Run
from studies.imagenette.networks import StudyNetwork


@dataclass(frozen=True)
class RunPlan:
    """What is trained, and how."""

    networks: Mapping[str, StudyNetwork]
    recipe: Path
    settings: Mapping[str, Any]
    """In place of the recipe's."""


def run_of(plan: RunPlan, name: str, seed: int, **machine: Any) -> Run:
    """The run of a network from a seed.

    Args:
        plan: What is trained.
        name: Of the network.
        seed: Of the run.
        **machine: Further settings: the data, where it runs.
    """
    network = plan.networks[name]
    options = dict(network.options)
    own = {"model": network.model, "drop_path": options.pop("drop_path_rate"), "model_options": options}
    return Run(name, seed, str(plan.recipe), {**plan.settings, **own, **machine})
