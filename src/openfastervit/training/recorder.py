"""What a run tells while it goes on: its folder's tables and pictures, trackers, the terminal.

All processes call it; the first one writes.
"""

import importlib.util
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from torch import Tensor, nn

from openfastervit.atomic import write_atomically
from openfastervit.data.loader import Unreadable
from openfastervit.models.checkpoints import metadata_text
from openfastervit.training.console import Console
from openfastervit.training.contact_sheet import write_contact_sheet
from openfastervit.training.curves import write_curves
from openfastervit.training.parallel import Processes
from openfastervit.training.progress import Progress, Sums
from openfastervit.training.recipe import LoopSettings
from openfastervit.training.run_folder import RunFolder

SHOWN = 32
"""Augmented images in the sample."""


class Recorder:
    """Writes down a run, between entering and leaving a ``with`` block.

    Args:
        folder: The run's; None on all processes but the first.
        settings: The loop's.
        processes: Who trains.
    """

    def __init__(self, folder: RunFolder | None, settings: LoopSettings, processes: Processes) -> None:
        self.folder, self.settings, self.processes = folder, settings, processes
        self.console = Console(processes.is_main)
        if settings.wandb and importlib.util.find_spec("wandb") is None:
            raise ValueError("wandb=True, but Weights & Biases is not installed; pip install wandb, or leave it out")
        self._unreadable: list[tuple[Literal["train", "val"], int, int, str, str]] = []
        self._trackers: Sequence[Any] = ()
        self._first_update = 0
        self._told_images = 0.0
        self._told_at = time.perf_counter()
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        if self.folder is not None:
            self._start_trackers(self.folder)
        self.console.__enter__()
        self._told_at = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.console.__exit__(kind, error, trace)
        for tracker in self._trackers:
            tracker.finish()

    def _start_trackers(self, folder: RunFolder) -> None:
        from accelerate.tracking import TensorBoardTracker, WandBTracker

        found: list[Any] = []
        if importlib.util.find_spec("tensorboard") is not None:
            # What a run that was killed had told beyond its last checkpoint is told again, and shown once.
            found.append(TensorBoardTracker("tensorboard", folder.path, purge_step=self._first_update))
        else:
            self.console.say(
                "TensorBoard is not installed, and gets nothing: pip install tensorboard, or openfastervit[train]"
            )
        if self.settings.wandb:
            found.append(WandBTracker("openfastervit", dir=str(folder.path)))
        for tracker in found:
            tracker.start()
        self._trackers = found

    def _track(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    # --- Within an epoch

    def update(self, progress: Progress, batches: int, sums: Sums, losses: Mapping[str, Tensor], norm: Tensor) -> None:
        """Tell of an update, now and then."""
        every = self.settings.log_every
        if self.folder is None or (progress.updates % every and not self.console.is_terminal):
            return
        line = progress.updates % every == 0
        now = time.perf_counter()
        if line or now - self._shown_at > 1:  # reading a loss waits for the GPU
            self._shown_at = now
            loss = float(losses["loss"])
            images = max(0.0, sums.images - self._told_images) * self.processes.count
            speed = images / (now - self._told_at)
            waits = sums.data_seconds / sums.seconds if sums.seconds else 0.0
            detail = f"loss {loss:.3f}  lr {progress.rate:.2e}  {speed:.0f} images/s  data wait {waits:.1%}"
            what = f"epoch {progress.epoch + 1}/{self.settings.total_epochs}"
            done = min(progress.batch + self.settings.accumulate, batches)
            self.console.step(what, done, batches, detail, line=line)
            if line:
                values = {f"train/{name}": float(value) for name, value in losses.items()}
                values |= {"train/grad_norm": float(norm), "train/lr": progress.rate, "train/images_per_second": speed}
                self._track(values, progress.updates)
                self._told_at, self._told_images = now, sums.images

    def augmented(self, images: Tensor, captions: Sequence[str], metadata: Mapping[str, Any]) -> None:
        """Keep a sample of the first batch, as the network sees it."""
        if self.folder is None:
            return
        prepared = metadata["input"]
        write_contact_sheet(
            images[:SHOWN].detach().float().cpu(),
            prepared["mean"],
            prepared["std"],
            captions[:SHOWN],
            self.folder.path / "augmented.png",
        )

    def evaluating(self, done: int, total: int) -> None:
        """Tell how far an evaluation is."""
        self.console.step("evaluating", done, total)

    def unreadable(self, images: Sequence[Unreadable], split: Literal["train", "val"], progress: Progress) -> None:
        """Note images that could not be read; they are written with the next checkpoint."""
        step = progress.updates + (split == "train")
        self._unreadable += [(split, progress.epoch + 1, step, image.name, image.reason) for image in images]

    def flush(self, processes: Processes) -> None:
        """Write what was noted, of all processes; each of them must call it."""
        noted = processes.gather(self._unreadable)
        self._unreadable = []
        if self.folder is None:
            return
        for (split, epoch, step), rows in itertools.groupby(sorted(noted), key=lambda row: row[:3]):
            self.folder.add_skipped([row[3:] for row in rows], split=split, epoch=epoch, step=step)
        if noted:
            shown = ", ".join(f"{name} ({reason})" for *_, name, reason in noted[:3])
            more = f" and {len(noted) - 3} more" if len(noted) > 3 else ""
            self.console.say(f"skipped {len(noted)} images that cannot be read: {shown}{more}; skipped.csv has them")

    # --- Checkpoints, epochs

    def metadata(self, network: nn.Module, told: Mapping[str, Any]) -> str:
        """The text that goes into weight files."""
        return metadata_text(network, told)

    def checkpoint(
        self,
        progress: Progress,
        files: Mapping[str, Callable[[Path], None]],
        result: str,
        processes: Processes,
    ) -> None:
        """Write a checkpoint, and point ``last`` and, after a best epoch, ``best`` to its result."""
        self.flush(processes)
        if self.folder is not None:
            path = self.folder.save_checkpoint(progress.updates, files, self.settings.keep_checkpoints)
            self.publish(progress, path / result)
        processes.wait()

    def publish(self, progress: Progress, result: Path) -> None:
        """Make a checkpoint's network the last one, and the best one if it is."""
        assert self.folder is not None
        self.folder.publish("last.safetensors", result)
        if progress.best_update == progress.updates:
            self.folder.publish("best.safetensors", result)

    def rewind(self, progress: Progress, sums: Sums, result: Path | None) -> None:
        """Drop what was written after the checkpoint that a run goes on from, whose result is given."""
        assert self.folder is not None
        self.folder.truncate_metrics(progress.updates, progress.epoch)
        self._first_update = progress.updates + 1
        self._told_images = sums.images
        if result is not None:
            self.publish(progress, result)
            at = f"epoch {progress.epoch + 1}, update {progress.updates}"
            self.console.say(f"resuming {self.folder.path} at {at}")
        else:
            self.console.say(f"{self.folder.path} has no checkpoint yet: it starts from the beginning")

    def epoch(
        self, progress: Progress, total: Sums, metrics: Mapping[str, float], metric: str, processes: Processes
    ) -> None:
        """Tell of an epoch that is done, its evaluation included."""
        self.flush(processes)
        if self.folder is None:
            return
        seconds = max(total.seconds, 1e-9)
        row: dict[str, float | int | str] = {
            "epoch": progress.epoch,
            "step": progress.updates,
            **{f"train_{name}": value / max(total.updates, 1) for name, value in total.losses.items()},
            **{f"val_{name}": value for name, value in metrics.items()},
            "lr": progress.rate,
            "images_per_second": round(total.images / seconds, 1),
            "data_wait": round(total.data_seconds / seconds, 4),
            "seconds": round(total.seconds, 2),
            "unreadable": int(total.unreadable),
            "skipped_updates": progress.skipped,
        }
        self.folder.append_metrics(row)
        self._track({f"val/{name}": value for name, value in metrics.items()}, progress.updates)
        with warnings.catch_warnings(record=True) as told:
            drawn = write_curves(self.folder.metrics_csv, self.folder.path / "curves.png")
        for warning in told:
            self.console.say(f"curves.png: {warning.message}")
        if not drawn and progress.epoch == 1:
            self.console.say(
                "matplotlib is not installed: no curves.png; pip install matplotlib, or openfastervit[train]"
            )
        figures = "  ".join(f"val {name} {value:.4g}" for name, value in metrics.items() if name != "images")
        mark = "  (best)" if progress.best_update == progress.updates and metrics else ""
        self.console.say(
            f"epoch {progress.epoch}/{self.settings.total_epochs}  train loss {row.get('train_loss', math.nan):.4f}  "
            f"{figures}  {row['images_per_second']} images/s  data wait {row['data_wait']:.1%}{mark}"
        )
        self._told_images = 0.0
        self._told_at = time.perf_counter()

    def not_finite(self, told: Mapping[str, Any]) -> None:
        """Keep what is known of an update that went wrong."""
        if self.folder is not None:
            write_atomically(self.folder.path / "not_finite.json", json.dumps(told, indent=2).encode() + b"\n")

    def way_on(self) -> str:
        """What to do where weights or loss are no numbers."""
        saved = self.folder.checkpoints() if self.folder is not None else []
        mend = "lower lr or set clip_grad, and start a new run"
        if not saved:
            return f"no checkpoint was written yet: {mend}"
        return f"the checkpoint of update {saved[-1][0]} is good: {mend}, with its network as weights"
