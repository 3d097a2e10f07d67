"""A training run from start to end: the folder, the processes, the task, the loop."""

import contextlib
import filecmp
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from openfastervit.tasks.classification import Classification
from openfastervit.tasks.detection.task import Detection
from openfastervit.tasks.segmentation.task import Segmentation
from openfastervit.tasks.task import Task
from openfastervit.training import checkpoint_store
from openfastervit.training.console import Console
from openfastervit.training.parallel import Processes, read_on_first
from openfastervit.training.progress import Progress
from openfastervit.training.recipe import (
    ClassificationRecipe,
    DetectionRecipe,
    Recipe,
    SegmentationRecipe,
    make_recipe,
)
from openfastervit.training.recorder import Recorder
from openfastervit.training.run_folder import RunFolder
from openfastervit.training.state import AVERAGE, STATE, WEIGHTS
from openfastervit.training.tables import read_table
from openfastervit.training.trainer import Outcome, Trainer

Made = TypeVar("Made")

RECIPES: dict[str, type[Recipe]] = {
    "classification": ClassificationRecipe,
    "detection": DetectionRecipe,
    "segmentation": SegmentationRecipe,
}
"""A task's recipe, by the task's name."""
TASKS: dict[str, type[Any]] = {
    "classification": Classification,
    "detection": Detection,
    "segmentation": Segmentation,
}

ANYWHERE = (
    *("device", "workers", "data", "data_root", "log_every", "save_minutes", "save_steps", "keep_checkpoints"),
    *("batch_size", "accumulate", "sharding", "max_unreadable"),
    *("train_annotations", "train_images", "val_annotations", "val_images"),
)
"""Settings that a resumed run may change: where it runs and what it tells, not what it computes. An update must have
as many images as before, over all processes."""


def start(recipe: Recipe, out: str | os.PathLike[str], command: Sequence[str] = ()) -> Outcome:
    """Train from the beginning.

    Args:
        recipe: What to do.
        out: The run's folder; new or empty.
        command: The command line, to be written down.

    Raises:
        ValueError, OSError: If something asked for is not there or does not fit; nothing is left in ``out`` then.
        Stopped: If a signal ended the run.
        TrainingError: If it cannot go on.
    """
    recipe.check()
    processes = Processes(recipe)
    task = _task(recipe, processes)
    asked, recipe = recipe.batch_size, recipe.for_data(len(task.training_images), processes.count)
    if processes.is_main and recipe.batch_size != asked:
        images = len(task.training_images)
        warnings.warn(f"batch_size {asked} is lowered to {recipe.batch_size}, for {images} images", stacklevel=2)
    folder = _on_first(processes, lambda: RunFolder.create(out, recipe.to_yaml(), seed=recipe.seed, command=command))
    try:
        try:
            trainer = Trainer(recipe, task, processes, Recorder(folder, recipe, processes))
        except BaseException:
            if folder is not None:
                folder.discard()
            raise
        return trainer.fit()
    finally:
        if folder is not None:
            folder.close()


def resume(path: str | os.PathLike[str], command: Sequence[str] = (), **changes: Any) -> Outcome:
    """Go on with a run, from its newest checkpoint that is whole.

    Args:
        path: The run's folder.
        command: The command line, to be written down.
        **changes: Settings of ``ANYWHERE``.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If a setting may not change, or all checkpoints are damaged.
        Stopped: If a signal ended the run.
        TrainingError: If it cannot go on.
    """
    recipe = resumed_recipe(path, **changes)
    processes = Processes(recipe)
    done = processes.broadcast(_on_first(processes, lambda: _finished(Path(path), recipe)))
    if done is not None:
        Console(processes.is_main).say(f"{path} is done already: all {done.epoch} epochs; nothing was changed")
        return Outcome({}, done.best, TASKS[recipe.task].metric_told.format(done.best))
    task = _task(recipe, processes)
    folder = _on_first(processes, lambda: RunFolder.resume(path, command=command))
    try:
        newest = None if folder is None else folder.newest()
        found_one = bool(processes.broadcast(newest is not None))
        recorder = Recorder(folder, recipe, processes)
        checkpoint = None if newest is None else newest[1]
        trainer = Trainer(recipe, task, processes, recorder, checkpoint=checkpoint, resume=found_one)
        if folder is not None:
            result = None if checkpoint is None else checkpoint / trainer.state.result
            recorder.rewind(trainer.progress, trainer.state.sums, result)
        return trainer.fit()
    finally:
        if folder is not None:
            folder.close()


def resumed_recipe(path: str | os.PathLike[str], **changes: Any) -> Recipe:
    """The settings that a run goes on with.

    The first weights are not among them once there is a checkpoint: it takes their place, and they may be gone.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If a setting may not change.
    """
    for name in changes:
        if name not in ANYWHERE:
            raise ValueError(
                f"{name} cannot change in a run that is resumed: its recipe is in {Path(path) / 'recipe.yaml'}; "
                "start a new run with --recipe and another --out"
            )
    found = yaml.safe_load(read_on_first(lambda: _recipe_without_first_weights(path)))
    kind = RECIPES.get(found.get("task", "classification")) if isinstance(found, dict) else None
    if kind is None:
        raise ValueError(f"{Path(path) / 'recipe.yaml'} is damaged: it names no task")
    return make_recipe({**found, **changes}, kind)


def _recipe_without_first_weights(path: str | os.PathLike[str]) -> str:
    text = read_recipe_text(path)
    found = yaml.safe_load(text)
    if not isinstance(found, dict) or not checkpoint_store.complete(Path(path) / "checkpoints"):
        return text
    return yaml.safe_dump({**found, "weights": None, "pretrained": False}, sort_keys=False)


def _task(recipe: Recipe, processes: Processes) -> Task:
    """The task, its data sets opened; where they are to be downloaded, by one process of each machine first."""
    first = processes.accelerator.local_main_process_first() if recipe.downloads else contextlib.nullcontext()
    with first:
        return TASKS[recipe.task](recipe, seed=recipe.seed)


def read_recipe_text(path: str | os.PathLike[str]) -> str:
    """The settings of a run.

    Raises:
        FileNotFoundError: If there is no run.
    """
    file = Path(path) / "recipe.yaml"
    if not file.is_file():
        what = "is no folder" if not Path(path).is_dir() else "has no recipe.yaml in it"
        raise FileNotFoundError(f"--resume {path}: there is no run, {path} {what}; give the folder that --out named")
    return file.read_text(encoding="utf-8", errors="surrogateescape")


def _finished(path: Path, recipe: Recipe) -> Progress | None:
    """Where a run stands that has nothing left to do; None where something is, or may be."""
    rows = read_table(path / "metrics.csv")[1]
    checkpoints = checkpoint_store.complete(path / "checkpoints")
    if not rows or not checkpoints or rows[-1].get("epoch") != str(recipe.total_epochs):
        return None
    newest = checkpoints[-1][1]
    if checkpoint_store.damage(newest) is not None:
        return None
    state = torch.load(newest / STATE, map_location="cpu", weights_only=True)
    progress = Progress(**state["progress"])
    published = ["last.safetensors"] + ["best.safetensors"] * (progress.best_update == progress.updates)
    result = newest / (WEIGHTS if recipe.ema_decay is None else AVERAGE)
    whole = all((path / name).is_file() and filecmp.cmp(path / name, result, shallow=False) for name in published)
    return progress if whole and progress.epoch == recipe.total_epochs else None


def _on_first(processes: Processes, make: Callable[[], Made]) -> Made | None:
    """What is made on the first process, None on the others; an error on the first is one on all."""
    made, error = None, None
    if processes.is_main:
        try:
            made = make()
        except (OSError, ValueError) as found:
            error = found
    message = processes.broadcast(None if error is None else str(error))
    if error is not None:
        raise error
    if message is not None:
        raise ValueError(message)
    return made
