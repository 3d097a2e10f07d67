"""The training loop, for every task, on one process or many.

A step is a function of the checkpoint, the recipe and where in the run it stands: all that is drawn comes from
generators seeded by that place. So a run that was killed and resumed ends as one that never was.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openfastervit.data.loader import EvaluationOrder, TrainingOrder, close, create_loader, seed_everything
from openfastervit.layers.attention import use_kernels
from openfastervit.tasks.task import Batch, Metrics, Task
from openfastervit.training import parallel
from openfastervit.training.averaging import WeightAverage
from openfastervit.training.batch_norm import apart, statistics, synchronise_batch_norm
from openfastervit.training.distillation import mesa_loss
from openfastervit.training.evaluation import evaluate
from openfastervit.training.finite import FiniteCheck
from openfastervit.training.optimisation import Schedule, create_optimizer, rate_factor
from openfastervit.training.progress import Progress, Sums
from openfastervit.training.recipe import LoopSettings
from openfastervit.training.recorder import Recorder
from openfastervit.training.sharding import check_optimizer, shard, whole
from openfastervit.training.signals import StopSignals
from openfastervit.training.state import RunState

MOST_SKIPPED = 100
"""Overflows in a row that end a run: a scale that keeps falling will not find a gradient that fits."""


class TrainingError(ValueError):
    """A run cannot go on; its last checkpoint is whole."""


class Stopped(Exception):  # noqa: N818  # asked for, not an error
    """A signal ended the run, after a checkpoint."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    metrics: dict[str, float]
    """Of its last evaluation; empty where there was nothing left to do."""
    best: float
    """The best of the task's figure."""
    told: str
    """The same in words."""


class Trainer:
    """One run.

    Args:
        settings: The loop's settings.
        task: What is trained.
        processes: Who trains.
        recorder: What is kept of the run, and told.
        checkpoint: Where to go on from; None for the beginning, and on all processes but the first.
        resume: Whether there is a checkpoint.

    Raises:
        ValueError: If the settings do not go together with the data.
    """

    def __init__(
        self,
        settings: LoopSettings,
        task: Task,
        processes: parallel.Processes,
        recorder: Recorder,
        *,
        checkpoint: Path | None = None,
        resume: bool = False,
    ) -> None:
        self.settings, self.task, self.processes, self.recorder = settings, task, processes, recorder
        if settings.deterministic or (settings.deterministic is None and processes.device.type == "cpu"):
            torch.use_deterministic_algorithms(True, warn_only=True)
        self._prepare_data()
        self._prepare_model()
        self.finite = FiniteCheck()
        if resume:
            self.state.load(checkpoint)
        self.progress = self.state.progress

    # --- Before the first step

    def _prepare_data(self) -> None:
        settings, processes = self.settings, self.processes
        images, validation = len(self.task.training_images), len(self.task.validation_images)
        share = {"processes": processes.count, "process": processes.rank}
        self.order = TrainingOrder(
            images,
            settings.batch_size,
            multiple=settings.accumulate,
            repeats=getattr(settings, "repeated_augmentation", 1),
            seed=settings.seed,
            epochs=settings.total_epochs,
            **share,
        )
        self.step_images = settings.batch_size * processes.count
        if self.order.batches == 0:
            raise ValueError(
                f"{images} training images do not fill one update of {self.step_images * settings.accumulate} "
                f"(batch_size {settings.batch_size} x {processes.count} processes x accumulate {settings.accumulate}); "
                "lower batch_size"
            )
        if processes.sharded and validation < processes.count:
            raise ValueError(f"{validation} validation images for {processes.count} processes; start fewer")
        loading: dict[str, Any] = {
            "workers": parallel.loader_workers(settings.workers, processes),
            "pin_memory": processes.device.type == "cuda",
        }
        self.loader = create_loader(self.task.training_images, self.order, self.task.collate, **loading)
        self.validation_order = EvaluationOrder(validation, settings.batch_size, **share)
        self.validation_loader = create_loader(
            self.task.validation_images, self.validation_order, self.task.collate, **loading
        )

    def _prepare_model(self) -> None:
        settings, processes = self.settings, self.processes
        seed_everything("weights", settings.seed)
        network = self.task.build()
        self.metadata = self.task.metadata(network)
        if settings.sync_batch_norm and processes.count > 1:
            network = synchronise_batch_norm(network, processes.device)
        self._still = self._freeze(network)
        # FSDP2 takes no other layout of weights than the usual one; that of the images does as well.
        channels_last = settings.channels_last and not processes.sharded
        layout = torch.channels_last if channels_last else torch.preserve_format
        network = network.to(processes.device).to(memory_format=layout)
        if settings.attention_kernels:
            use_kernels(network)
        average = None
        if settings.ema_decay is not None:
            average = WeightAverage(network, settings.ema_decay, warmup=settings.ema_warmup)
        if settings.compile:
            network.compile(mode=settings.compile_mode)
        batch = self.step_images * settings.accumulate
        if processes.sharded:
            plain = replace(settings, layer_decay=None, lr=0.01, lr_batch=None)
            check_optimizer(
                settings.optimizer,
                lambda small: create_optimizer(small, plain, batch),
                processes.device,
                processes.count,
            )
            shard(network, processes.device, processes.count)
        self.network = network
        self._norms_apart = apart(network, self._still)
        optimizer = create_optimizer(network, settings, batch)
        self.schedule = Schedule(optimizer, settings, self.order.batches // settings.accumulate, batch)
        self.model = network if processes.sharded else processes.copies(network)
        self.stepper: Any = processes.accelerator.prepare_optimizer(optimizer)
        images = len(self.task.training_images)
        self.state = RunState(
            self.model, optimizer, average, processes, Progress(), Sums(), self.step_images, settings.accumulate, images
        )

    def _freeze(self, network: nn.Module) -> list[nn.Module]:
        """Choose what does not learn. Returns the modules that stay in evaluation mode, with their statistics."""
        if getattr(self.settings, "freeze_backbone", False):
            network.requires_grad_(False)
            head = self.task.head(network)
            head.requires_grad_(True)
            learning = set(head.modules())
            return [module for module in network.modules() if learning.isdisjoint(module.modules())]
        if getattr(self.settings, "freeze_batch_norm", False):
            backbone = self.task.backbone(network)
            still = [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
            for module in still:
                module.requires_grad_(False)
            return list(still)
        return []

    # --- The run

    def fit(self) -> Outcome:
        """Train to the end.

        Raises:
            Stopped: If a signal asked for it; everything is saved.
            TrainingError: If the loss is not finite, or too many images cannot be read.
            OSError: If the folder cannot be written.
        """
        settings, progress = self.settings, self.progress
        metrics: dict[str, float] = {}
        with StopSignals() as self.signals, self.recorder:
            self._saved_at = time.monotonic()
            self._introduce()
            self.order.begin(progress.epoch, progress.batch)
            batches = iter(self.loader) if len(self.order) > 0 else iter(())
            try:
                while progress.epoch < settings.total_epochs:
                    self._train_epoch(batches)
                    last = progress.epoch + 1 == settings.total_epochs
                    due = last or (progress.epoch + 1) % settings.eval_every == 0
                    metrics = self._evaluate() if due else {}
                    self._end_epoch(metrics)
            except RuntimeError as error:
                if "DataLoader worker (pid" not in str(error):  # the words of torch
                    raise
                raise TrainingError(
                    f"a process that decodes images died ({' '.join(str(error).split())}), often for want of memory; "
                    "go on with --resume, with fewer --workers"
                ) from error
            finally:
                close(batches)
        return Outcome(metrics, progress.best, self.task.metric_told.format(progress.best))

    def _introduce(self) -> None:
        """Tell what is about to be trained: a rate that does not suit the data shows here first."""
        settings, processes, images = self.settings, self.processes, len(self.task.training_images)
        parameters = sum(parameter.numel() for parameter in self.network.parameters()) / 1e6
        batch = self.step_images * settings.accumulate
        rate = settings.lr * rate_factor(settings, batch)
        scaled = (
            "" if settings.lr_batch in (None, batch) else f" (lr {settings.lr:g} is for {settings.lr_batch} images)"
        )
        self.recorder.console.say(
            f"{self.task.name}, {parameters:.3g} M parameters, on {processes.count} x {processes.device.type}; "
            f"{images} training images, {len(self.task.validation_images)} to be judged on; {batch} an update, "
            f"{self.order.batches // settings.accumulate} updates an epoch; learning rate up to {rate:.2g}{scaled}"
        )

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        self.model.train()
        for module in self._still:
            module.training = False
        while self.progress.batch < self.order.batches:
            started = time.perf_counter()
            group = [next(batches) for _ in range(self.settings.accumulate)]
            waited = time.perf_counter() - started
            self._update(group)
            self.progress.batch += len(group)
            self.state.sums.data_seconds += waited
            self.state.sums.seconds += time.perf_counter() - started
            self._between_updates()

    def _update(self, group: list[Batch]) -> None:
        """One update of the weights, from one batch or several."""
        settings, progress, accelerator = self.settings, self.progress, self.processes.accelerator
        seed_everything("update", settings.seed, progress.updates, self.processes.rank)
        progress.rate = self.schedule.set(progress.updates)
        losses: dict[str, Tensor] = {}
        names: list[str] = []
        self._note_unreadable(group)
        for number, batch in enumerate(group, start=1):
            names += batch.names
            batch = self.task.augment(batch.to(self.processes.device, settings.channels_last))
            if progress.updates == 0 and number == 1 and self.processes.is_main:
                self.recorder.augmented(self.task.sample(batch), self.task.captions(batch), self.metadata)
            with self.processes.accumulating(self.model, more=number < len(group)):
                for name, value in self._backward(batch, 1 / len(group)).items():
                    losses[name] = losses[name] + value if name in losses else value
        bound = math.inf if settings.clip_grad is None else settings.clip_grad
        norm = whole(accelerator.clip_grad_norm_(self.network.parameters(), bound))
        self.stepper.step()
        self.stepper.zero_grad()
        self.processes.average(statistics(self._norms_apart))  # before the average of the weights follows them
        progress.updates += 1
        if self.stepper.step_was_skipped:
            progress.skipped += 1
            progress.skipped_in_a_row += 1
        else:
            progress.skipped_in_a_row = 0
            self.state.sums.updates += 1
            self.state.sums.add(losses)
            if settings.precision != "fp16":
                self.finite.push(progress.updates, losses["loss"], norm, names)
            if self.state.average is not None:
                self.state.average.update(self.network, progress.updates)
        sums = self.state.sums
        sums.images += sum(len(batch) for batch in group)
        self.recorder.update(progress, self.order.batches, self.state.sums, losses, norm)

    def _backward(self, batch: Batch, share: float) -> dict[str, Tensor]:
        """Gradients of a batch's losses, which count for ``share`` of the update. Returns these shares, with names."""
        inputs = self.task.inputs(batch)
        with self.processes.accelerator.autocast():
            outputs = self.model(*inputs)
            parts = dict(self.task.losses(outputs, batch))
            if self.settings.mesa > 0 and self.progress.epoch >= self.settings.mesa_start * self.settings.epochs:
                parts["mesa"] = self.settings.mesa * self._teacher_loss(inputs, outputs)
        loss = torch.stack(list(parts.values())).sum() * share
        self.processes.accelerator.backward(loss)
        told = {"loss": loss.detach()}
        if len(parts) > 1:
            told |= {name: value.detach() * share for name, value in parts.items()}
        return told

    def _teacher_loss(self, inputs: tuple[Any, ...], outputs: Any) -> Tensor:
        assert self.state.average is not None  # the recipe sees to it
        with torch.no_grad():
            teacher = self.task.logits(self.state.average.module(*inputs))
        student = self.task.logits(outputs)
        if student is None or teacher is None:
            raise ValueError(f"mesa={self.settings.mesa}: {self.task.name} has no logits to teach with; set it to 0")
        return mesa_loss(student, teacher)

    def _note_unreadable(self, group: list[Batch]) -> None:
        unreadable = [image for batch in group for image in batch.unreadable]
        self.state.sums.unreadable += len(unreadable)
        self.recorder.unreadable(unreadable, "train", self.progress)
        if any(len(batch) < self.settings.batch_size for batch in group):
            if self.processes.count == 1:  # others may have found enough, and do not come here
                self.recorder.flush(self.processes)
            last = unreadable[-1]
            raise TrainingError(
                f"{len(unreadable)} images for one step cannot be read, nor those taken in their place; the last is "
                f"{last.name}: {last.reason}. skipped.csv in the run's folder names them; check the data"
            )

    # --- Between updates: what all processes must agree on

    def _between_updates(self) -> None:
        """Stop or save where any process has reason to."""
        settings, progress = self.settings, self.progress
        due = time.monotonic() - self._saved_at > settings.save_minutes * 60
        stop, save, wrong, unreadable = self.processes.agree(
            [
                self.signals.received is not None,
                due and self.processes.is_main,
                self.finite.found is not None,
                self.state.sums.unreadable,
            ]
        )
        if wrong:
            self._stop_not_finite()
        self._check_readable(unreadable, len(self.task.training_images), "training")
        if progress.skipped_in_a_row >= MOST_SKIPPED:
            raise TrainingError(
                f"{MOST_SKIPPED} updates in a row overflowed in fp16, up to update {progress.updates}; "
                "lower lr, or take precision bf16"
            )
        steps = settings.save_steps
        if stop or save or (steps and progress.updates % steps == 0):
            self._save()
        if stop:
            raise Stopped(self.signals.received or self.signals.default)

    def _check_readable(self, unreadable: float, images: int, kind: str) -> None:
        if unreadable > math.ceil(self.settings.max_unreadable * images):  # one of a few is no large share
            self.recorder.flush(self.processes)
            raise TrainingError(
                f"{unreadable:.0f} of {images} {kind} images cannot be read, more than max_unreadable="
                f"{self.settings.max_unreadable}; skipped.csv in the run's folder names them: mend them, then go on "
                "with --resume, or with --max-unreadable allow for more"
            )

    def _stop_not_finite(self) -> None:
        found = self.finite.found
        told = self.processes.gather([None if found is None else found._asdict()])
        first = min((one for one in told if one is not None), key=lambda one: one["update"])
        names = [name for one in told if one is not None and not math.isfinite(one["loss"]) for name in one["names"]]
        names = names or [name for one in told if one is not None for name in one["names"]]
        figures = {"loss": str(first["loss"]), "gradient_norm": str(first["norm"])}
        self.recorder.not_finite({"update": first["update"], **figures, "images": names})
        shown = ", ".join(names[:8])
        shown += f" and {len(names) - 8} more, all in not_finite.json in the run's folder" if len(names) > 8 else ""
        raise TrainingError(
            f"update {first['update']} is not finite (loss {first['loss']}, gradient norm {first['norm']}); its images "
            f"are {shown}; {self.recorder.way_on()}"
        )

    def _save(self) -> None:
        """A checkpoint; only of weights known to be finite."""
        self.finite.settle()
        broken = self.state.not_finite()
        wrong, blown = self.processes.agree([self.finite.found is not None, broken is not None])
        if wrong:
            self._stop_not_finite()
        if blown:  # the loss comes before the step that spoils the weights
            found = next(name for name in self.processes.gather([broken]) if name is not None)
            raise TrainingError(
                f"the weights are not finite after update {self.progress.updates}: {found}; {self.recorder.way_on()}"
            )
        files = self.state.files(self.recorder.metadata(self.network, self.metadata))
        self.recorder.checkpoint(self.progress, files, self.state.result, self.processes)
        self._saved_at = time.monotonic()

    # --- The end of an epoch

    def _evaluate(self) -> dict[str, float]:
        """Figures of the validation images: of the average of the weights, where there is one."""
        progress, processes = self.progress, self.processes
        model = self.network if self.state.average is None else self.state.average.module
        metrics: Metrics = self.task.new_metrics()
        steps = self.validation_order.most

        def after_step(step: int) -> None:
            self.recorder.evaluating(step + 1, steps)
            if processes.agree([self.signals.received is not None])[0]:
                self._save()
                raise Stopped(self.signals.received or self.signals.default)

        unreadable = evaluate(
            model,
            self.validation_loader,
            metrics,
            inputs=self.task.inputs,
            predict=self.task.predict,
            device=processes.device,
            channels_last=self.settings.channels_last,
            autocast=processes.accelerator.autocast,
            steps=steps,
            together=processes.sharded and self.state.average is None,
            after_step=after_step,
        )
        self.recorder.unreadable(unreadable, "val", progress)
        count = processes.agree([len(unreadable)])[0]
        self._check_readable(count, len(self.task.validation_images), "validation")
        everyone = processes.gather([metrics])
        for other in everyone[1:]:
            everyone[0].merge(other)
        figures: dict[str, float] = everyone[0].compute()
        return figures

    def _end_epoch(self, metrics: dict[str, float]) -> None:
        progress = self.progress
        total = Sums.total(self.processes.gather([self.state.sums.plain()]))
        progress.epoch += 1
        progress.batch = 0
        self.state.sums = Sums()
        if metrics and (metrics[self.task.metric] > progress.best or progress.best_update < 0):
            progress.best, progress.best_update = metrics[self.task.metric], progress.updates
        self.recorder.epoch(progress, total, metrics, self.task.metric, self.processes)
        self._save()
