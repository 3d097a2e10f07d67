"""A run: a network by name, settings of a recipe and a seed, trained into a folder of its own."""

import dataclasses
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from openfastervit.training.recipe import ClassificationRecipe, read_recipe
from openfastervit.training.run import ANYWHERE, resume, start
from studies.common.outcome import read_outcome

_PLACES = (*ANYWHERE, "weights")
"""Settings that tell where things are, or how a run is cut up."""


@dataclass(frozen=True)
class Run:
    """What is trained, how, and from which seed. Plain data: it goes to another process as JSON."""

    name: str
    """Of the variant; with the seed it names the folder."""
    seed: int
    recipe: str
    """The file."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """In place of the recipe's, data and device among them."""
    modules: Sequence[str] = ()
    """Imported before: they register networks with timm."""

    @property
    def title(self) -> str:
        """As lines on the terminal and names of folders have it."""
        return f"{self.name}-seed{self.seed}"

    def folder(self, out: Path) -> Path:
        """Where it is kept."""
        return out / self.title

    def resolved(self) -> ClassificationRecipe:
        """All settings.

        Raises:
            ValueError, FileNotFoundError: If one is unknown or out of range.
        """
        for module in self.modules:
            importlib.import_module(module)
        return read_recipe(self.recipe, ClassificationRecipe, **{**self.settings, "seed": self.seed})


def seeds_of(name: str, out: Path) -> list[int]:
    """Seeds that a variant has runs of, done or not."""
    found = (re.fullmatch(re.escape(name) + r"-seed(\d+)", path.parent.name) for path in out.glob("*/recipe.yaml"))
    return sorted(int(match[1]) for match in found if match is not None)


def is_done(run: Run, out: Path) -> bool:
    """Whether nothing is left to do.

    Raises:
        ValueError: If the folder holds a run with other settings.
    """
    folder = run.folder(out)
    if not (folder / "recipe.yaml").exists():
        return False
    _check_same(run, folder)
    return read_outcome(folder) is not None


def train(run: Run, out: Path, command: Sequence[str]) -> None:
    """Train, or go on where there is a run already; nothing where it is done.

    Args:
        run: What.
        out: The folder of the run's folder.
        command: The command line, to be written down.

    Raises:
        ValueError: If the settings are wrong, or the folder holds a run with others.
        Stopped: If a signal ended it; it can go on.
    """
    if is_done(run, out):
        return
    recipe = run.resolved()
    folder = run.folder(out)
    if (folder / "recipe.yaml").exists():
        resume(folder, command, device=recipe.device, data=recipe.data, workers=recipe.workers)
    else:
        start(recipe, folder, command)


def _check_same(run: Run, folder: Path) -> None:
    """Refuse to call a run the asked one that has other settings; where it runs may differ."""
    asked = dataclasses.asdict(run.resolved())
    found = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    for name, value in asked.items():
        if name not in _PLACES and name in found and found[name] != value:
            raise ValueError(
                f"{folder} holds a run with {name}={found[name]!r}, asked is {value!r}; give another --out"
            )
