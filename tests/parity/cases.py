"""The reference cases: what the released networks compute from reproducible weights."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import openfastervit
from openfastervit.models.layouts import from_released_config
from tests.conftest import shared_folder
from tests.parity import fill

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A manifest and its golden outputs."""

    folder: Path
    name: str

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return fill.load(self.folder / "manifests" / f"{self.name}.json")

    @cached_property
    def golden(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "golden" / f"{self.name}.npz") as opened:
            return {key: opened[key] for key in opened.files}

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return {key: torch.as_tensor(value) for key, value in fill.state_dict(self.manifest).items()}

    def images(self) -> Tensor:
        return torch.from_numpy(fill.images(self.manifest))

    def empty(self, **overrides: Any) -> openfastervit.FasterViT:
        """The network of the case, not yet with its weights."""
        config = self.manifest["config"]
        if "released_name" in config:
            return openfastervit.create_model(config["released_name"], **overrides)
        return openfastervit.FasterViT(**{**from_released_config(config), **overrides})

    def model(self) -> openfastervit.FasterViT:
        model = self.empty()
        openfastervit.load_checkpoint(model, self.weights)
        return model.eval()

    def __str__(self) -> str:
        return self.name


def _cases(folder: Path) -> list[Case]:
    return [Case(folder, path.stem) for path in sorted((folder / "manifests").glob("*.json"))]


TINY = _cases(HERE)
_tiny = {case.name for case in TINY}
FULL = [case for case in _cases(shared_folder() / "parity") if case.name not in _tiny]
TRAINED = [case for case in TINY if "train_loss" in case.golden]
