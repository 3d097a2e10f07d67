"""What the studies of detection and segmentation share: training in their folder, what a row follows from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openfastervit.training.recipe import Recipe
from openfastervit.training.run import resume, start
from openfastervit.training.tables import read_table


def train(recipe: Recipe, folder: Path, command: Sequence[str]) -> list[dict[str, str]]:
    """Train, or go on with a run that was interrupted; nothing where it is done. Returns the rows of its epochs.

    Raises:
        Stopped: If a signal ended it; the same call goes on.
        ValueError: If the settings are wrong.
    """
    if (folder / "recipe.yaml").exists():
        resume(folder, command, workers=recipe.workers, device=recipe.device)
    else:
        start(recipe, folder, command)
    return read_table(folder / "metrics.csv")[1]


def conditions(folder: Path) -> dict[str, Any]:
    """What a run's figures follow from, besides its recipe: hardware, versions, revision."""
    starts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["starts"]
    first = starts[0]
    git = first["git"] or {}
    return {
        "starts": len(starts),
        "processor": first["hardware"]["processor"],
        "cores": first["hardware"]["cores"],
        "gpus": first["hardware"]["gpus"],
        "torch": first["versions"]["torch"],
        "torchvision": first["versions"]["torchvision"],
        "timm": first["versions"]["timm"],
        "revision": git.get("revision", ""),
    }
