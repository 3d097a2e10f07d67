"""The folder of a training run: what is in it, who may write into it, and going on with it.

::

    RUN/
      recipe.yaml        the settings, all of them
      environment.json   the seed; for each start and resume: when, command, versions, git revision, hardware
      metrics.csv        a row an epoch
      skipped.csv        images that could not be read
      checkpoints/step-00001234/   model.safetensors, training_state.pt ..., manifest.json
      best.safetensors, last.safetensors
      curves.png, augmented.png, tensorboard/   by others

Nothing here knows of processes that train together: the first of them alone calls what writes.
"""

import contextlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from openfastervit.atomic import recover, sync_directory, temporary_for, write_atomically
from openfastervit.training import checkpoint_store, tables
from openfastervit.training.environment import describe_start
from openfastervit.training.lock import FolderLock

_RECIPE = "recipe.yaml"
_ENVIRONMENT = "environment.json"
_SKIPPED = ("image", "reason", "split", "epoch", "step")


class RunFolder:
    """A run's folder, held for this process until ``close`` or the end of a ``with`` block.

    Made by ``create`` or ``resume``.
    """

    def __init__(self, path: Path, lock: FolderLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], recipe_yaml: str, *, seed: int, command: Sequence[str]
    ) -> "RunFolder":
        """Start a run in a new folder, or in one with nothing but hidden files in it.

        Args:
            path: The folder.
            recipe_yaml: The resolved settings.
            seed: Of the run.
            command: The command line.

        Raises:
            ValueError: If something is there already.
            OSError: If the folder cannot be made or locked.
        """
        path = Path(path)
        _check_free(path)
        new = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        lock = None
        try:
            lock = FolderLock(path)
            _check_free(path)  # again: another process may have been quicker
        except BaseException:
            if lock is not None:
                lock.close()
            raise
        run = cls(path, lock)
        try:
            recover(path)
            write_atomically(path / _RECIPE, recipe_yaml.encode("utf-8", "surrogateescape"))
            run._write_environment({"seed": seed, "starts": [describe_start(command)]})
            if new:
                sync_directory(path.resolve().parent)
        except BaseException:
            for name in (_RECIPE, _ENVIRONMENT):
                (path / name).unlink(missing_ok=True)
            if new:
                shutil.rmtree(path, ignore_errors=True)
            run.close()
            raise
        return run

    @classmethod
    def resume(cls, path: str | os.PathLike[str], *, command: Sequence[str] = ()) -> "RunFolder":
        """Go on with a run, after clearing what an interrupted write left in its folder.

        Args:
            path: The folder.
            command: The command line, for ``environment.json``.

        Raises:
            FileNotFoundError: If there is no run.
            BlockingIOError: If another process trains into it.
        """
        path = Path(path)
        if not (path / _RECIPE).is_file():
            what = "is no folder" if not path.is_dir() else f"has no {_RECIPE} in it"
            raise FileNotFoundError(
                f"--resume {path}: there is no run, {path} {what}; give the folder that --out named when it started"
            )
        run = cls(path, FolderLock(path))
        try:
            recover(path)
            if run._checkpoints.is_dir():
                recover(run._checkpoints)
            environment = run._read_environment()
            environment["starts"] = [*environment.get("starts", []), describe_start(command)]
            run._write_environment(environment)
        except BaseException:
            run.close()
            raise
        return run

    def discard(self) -> None:
        """Take back ``create``, of a run that could not begin: nothing is left of it."""
        for name in (_RECIPE, _ENVIRONMENT, self._lock.path.name):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody else's hidden files are in it
            self.path.rmdir()
        self.close()

    def close(self) -> None:
        """Let other processes have the folder."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def recipe_text(self) -> str:
        """The settings the run was started with."""
        return (self.path / _RECIPE).read_text(encoding="utf-8", errors="surrogateescape")

    @property
    def metrics_csv(self) -> Path:
        """The file of ``append_metrics``."""
        return self.path / "metrics.csv"

    @property
    def skipped_csv(self) -> Path:
        """The file of ``add_skipped``."""
        return self.path / "skipped.csv"

    # --- Checkpoints ---

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def save_checkpoint(self, step: int, files: Mapping[str, Callable[[Path], None]], keep: int = 2) -> Path:
        """Write a checkpoint: whole or not at all, whatever happens meanwhile. Then remove older ones beyond ``keep``.

        Args:
            step: The step it was taken after. A checkpoint of the same step is replaced; those of later steps, from
                before the run was resumed, are removed.
            files: Names such as ``model.safetensors``, and what writes each to the path that it is given.
            keep: How many to keep, this one among them.

        Returns:
            The checkpoint's folder.

        Raises:
            OSError: If it cannot be written: names the file, the free space and the checkpoints that are whole.
        """
        return checkpoint_store.save(self._checkpoints, step, files, keep)

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Step and folder of each checkpoint that was written to its end, oldest first."""
        return checkpoint_store.complete(self._checkpoints)

    def newest(self) -> tuple[int, Path] | None:
        """Step and folder of the newest checkpoint whose every byte is as it was written; None before the first.

        A newer one that is damaged is named in a warning.

        Raises:
            ValueError: If all of them are damaged.
        """
        return checkpoint_store.newest(self._checkpoints)

    def publish(self, name: str, source: Path) -> Path:
        """Make a checkpoint's file the run's ``best.safetensors`` or ``last.safetensors``, replacing the one before.

        Both are one file on the disk where the file system can do that; it outlives the checkpoint.

        Args:
            name: In the run's folder.
            source: A whole file that nobody writes into any more.

        Returns:
            Where it is.
        """
        path = self.path / name
        temporary = temporary_for(path)
        try:
            os.link(source, temporary)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links, or another one
            with source.open("rb") as file:
                write_atomically(path, lambda out: shutil.copyfileobj(file, out, 1 << 20))
            return path
        try:
            os.replace(temporary, path)
            sync_directory(self.path)
        finally:
            # It is still there where both names were links to one file: then replacing does nothing.
            temporary.unlink(missing_ok=True)
        return path

    # --- Tables ---

    def append_metrics(self, row: Mapping[str, float | int | str]) -> None:
        """Add an epoch's row. ``step`` must be in it; columns may be new, and get empty cells in the rows before."""
        if "step" not in row:
            raise ValueError(f"a row of metrics needs its step; it has {', '.join(row) or 'nothing'}")
        tables.add_row(self.metrics_csv, row)

    def add_skipped(
        self, images: Iterable[tuple[str, str]], *, epoch: int, step: int, split: Literal["train", "val"] = "train"
    ) -> None:
        """Add images that could not be read.

        Args:
            images: Path and reason of each.
            epoch: The epoch in which it was met.
            step: The step that it would have been used in; of a validation image, the last one before.
            split: Whether it is a training or a validation image.
        """
        # An error's text may have several lines; a row has one.
        rows = [(image, " ".join(reason.split()), split, epoch, step) for image, reason in images]
        tables.extend(self.skipped_csv, _SKIPPED, rows)

    def truncate_metrics(self, step: int, epoch: int | None = None) -> None:
        """Drop the rows of both tables that a run which goes on from ``step`` writes again.

        Args:
            step: Rows of later steps go.
            epoch: How many epochs are done, evaluation included. Where the last step of an epoch is done and its
                evaluation is not, what was written of that evaluation goes too. None: steps alone count.
        """
        later = math.inf if epoch is None else epoch
        tables.cut_back(self.metrics_csv, step, lambda row: _number(row, "epoch") > later)
        tables.cut_back(self.skipped_csv, step, lambda row: row.get("split") == "val" and _number(row, "epoch") > later)

    # --- Environment ---

    def _write_environment(self, content: Mapping[str, Any]) -> None:
        write_atomically(self.path / _ENVIRONMENT, json.dumps(content, indent=2).encode() + b"\n")

    def _read_environment(self) -> dict[str, Any]:
        path = self.path / _ENVIRONMENT
        try:
            content = json.loads(path.read_bytes())
            if isinstance(content, dict) and isinstance(content.get("starts", []), list):
                return content
        except FileNotFoundError:
            return {}
        except ValueError:
            pass
        warnings.warn(f"{path} is damaged and is written anew; it held versions and commands only", stacklevel=3)
        return {}


def _number(row: Mapping[str, str], column: str) -> float:
    """A cell's number; below all others where the table has no such column."""
    return float(row[column]) if column in row else -math.inf


def _check_free(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"--out {path} is a file; give a folder")
    if (path / _RECIPE).exists() or (path / "checkpoints").exists():
        raise ValueError(f"--out {path} holds a run already; go on with it by --resume {path}, or give another --out")
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ValueError(f"--out {path} is not empty: it holds {shown}; give a new or empty folder")
