"""The loop on a task of a few numbers: what it skips, counts, refuses and gives back."""

import csv
import math
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from openfastervit.data.loader import LabelledImages, Sample
from openfastervit.layers import HierarchicalAttention
from openfastervit.tasks.metrics import ClassificationMetrics
from openfastervit.tasks.task import Batch
from openfastervit.training.parallel import Processes
from openfastervit.training.progress import Progress
from openfastervit.training.recipe import LoopSettings
from openfastervit.training.recorder import Recorder
from openfastervit.training.run_folder import RunFolder
from openfastervit.training.signals import ECHO, StopSignals
from openfastervit.training.trainer import MOST_SKIPPED, Stopped, Trainer, TrainingError

UPDATES = 5
"""Of an epoch."""


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


class Dots:
    """A source of single pixels, whose colour tells their class."""

    classes = ("dark", "light")

    def __init__(self, count: int) -> None:
        self.labels = [number % 2 for number in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"{index}.png"

    def open(self, index: int) -> Image.Image:
        return Image.new("L", (1, 1), 200 * self.labels[index] + index)


class Toy:
    """The least that the loop asks of a task."""

    name, metric, metric_told = "toy", "top1", "top-1 {:.2f} %"

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.training_images = LabelledImages(Dots(20), self.tensor, training=True)
        self.validation_images = LabelledImages(Dots(6), self.tensor, training=False)
        self.seen: list[float] = []

    @staticmethod
    def tensor(image: Image.Image) -> Tensor:
        return torch.tensor([[[image.getpixel((0, 0)) / 255]]])

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(1, 4), nn.GELU(), nn.Linear(4, 2))

    def collate(self, samples: Sequence[Sample]) -> Batch:
        images = torch.stack([sample.image for sample in samples])
        return Batch(images, torch.tensor([sample.target for sample in samples]), [sample.name for sample in samples])

    def augment(self, batch: Batch) -> Batch:
        return batch

    def sample(self, batch: Batch) -> Tensor:
        return batch.images

    def captions(self, batch: Batch) -> list[str]:
        return list(batch.names)

    def inputs(self, batch: Batch) -> tuple[Tensor]:
        return (batch.images,)

    def losses(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        loss = self.factor * F.cross_entropy(outputs.float(), batch.targets)
        self.seen.append(float(loss.detach()))
        return {"cross_entropy": loss}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.images)

    def new_metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics(("dark", "light"))

    def logits(self, outputs: Tensor) -> Tensor:
        return outputs

    def backbone(self, model: nn.Module) -> nn.Module:
        return model

    def head(self, model: nn.Module) -> nn.Module:
        return model[3]  # type: ignore[index,return-value]

    def metadata(self, model: nn.Module) -> dict[str, Any]:
        return {"task": "toy", "input": {"mean": [0.5], "std": [0.5]}}


def settings(**changes: Any) -> LoopSettings:
    plain = {"epochs": 2, "batch_size": 4, "lr": 0.01, "lr_batch": None, "workers": 0, "device": "cpu"}
    return LoopSettings(**{**plain, **changes})


def scale(processes: Processes, chosen: LoopSettings, start: float) -> None:
    """Let gradients be scaled as in fp16 on a GPU: the network runs in that precision, on the CPU."""
    accelerator = processes.accelerator
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=start)
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"
    chosen.precision = "fp16"


class Run:
    """A trainer with its folder."""

    def __init__(self, path: Path, task: Toy | None = None, scaled: float | None = None, **changes: Any) -> None:
        self.task = task or Toy()
        chosen = settings(**changes)
        processes = Processes(chosen)
        if scaled is not None:
            scale(processes, chosen, scaled)
        going_on = path.exists()
        self.folder = RunFolder.resume(path) if going_on else RunFolder.create(path, "a: 1\n", seed=0, command=[])
        newest = self.folder.newest()
        recorder = Recorder(self.folder, chosen, processes)
        self.trainer = Trainer(
            chosen, self.task, processes, recorder, checkpoint=newest and newest[1], resume=newest is not None
        )
        if going_on:
            result = newest and newest[1] / self.trainer.state.result
            recorder.rewind(self.trainer.progress, self.trainer.state.sums, result or None)

    def fit(self) -> None:
        try:
            self.trainer.fit()
        finally:
            self.folder.close()

    @property
    def progress(self) -> Progress:
        return self.trainer.progress

    def weights(self) -> list[Tensor]:
        return [value.clone() for value in self.trainer.network.state_dict().values()]

    def metrics(self) -> list[dict[str, str]]:
        with self.folder.metrics_csv.open(newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openfastervit.training.run_folder.describe_start", lambda command: {"command": command})
    monkeypatch.setattr("openfastervit.training.recorder.write_curves", lambda *_: True)


# --- Numbers that are none --------------------------------------------------------------------------------------------


def test_fp16_skips_and_counts_what_overflows(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", scaled=2.0**20, ema_decay=0.5, epochs=1)
    updates: list[tuple[bool, bool, bool]] = []
    real = run.trainer._update

    def watched(group: list[Batch]) -> None:
        average = run.trainer.state.average
        assert average is not None
        before, before_average = run.weights(), [value.clone() for value in average.module.state_dict().values()]
        skipped = run.progress.skipped
        real(group)
        same = all(map(torch.equal, run.weights(), before))
        same_average = all(map(torch.equal, average.module.state_dict().values(), before_average))
        updates.append((run.progress.skipped > skipped, same, same_average))

    run.trainer._update = watched  # type: ignore[method-assign]
    run.fit()
    overflowed = [skipped for skipped, *_ in updates]
    assert 0 < sum(overflowed) < UPDATES
    assert overflowed == sorted(overflowed, reverse=True)  # the scale falls until gradients fit
    assert updates == [(skipped, skipped, skipped) for skipped in overflowed]
    assert run.progress.skipped == sum(overflowed)
    assert run.progress.skipped_in_a_row == 0
    (row,) = run.metrics()
    assert int(row["skipped_updates"]) == sum(overflowed)
    counted = run.task.seen[sum(overflowed) :]
    assert float(row["train_loss"]) == pytest.approx(sum(counted) / len(counted), rel=1e-6)
    # The scale is part of the state.
    newest = run.folder.newest()
    assert newest is not None
    saved = torch.load(newest[1] / "training_state.pt", weights_only=True)
    assert saved["scaler"]["scale"] == 2.0 ** (20 - sum(overflowed))


def test_overflows_without_an_end_stop_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", Toy(factor=math.nan), scaled=2.0**10, epochs=40)
    before = run.weights()
    with pytest.raises(TrainingError, match=f"{MOST_SKIPPED} updates in a row overflowed in fp16, up to update 100"):
        run.fit()
    assert all(map(torch.equal, run.weights(), before))
    assert run.progress.skipped == MOST_SKIPPED
    assert [row.get("train_loss", "") for row in run.metrics()] == [""] * (MOST_SKIPPED // UPDATES - 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_elsewhere_the_run_stops_at_once(tmp_path: Path, precision: str) -> None:
    run = Run(tmp_path / "run", Toy(factor=math.inf), precision=precision)
    with pytest.raises(TrainingError, match=r"update 1 is not finite .*; its images are .*; no checkpoint was written"):
        run.fit()
    assert run.progress.updates == 1
    assert run.folder.checkpoints() == []


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", save_steps=2)
    real = run.trainer._update

    def spoil(group: list[Batch]) -> None:
        real(group)
        if run.progress.updates == 4:
            with torch.no_grad():
                run.trainer.network[3].bias[1] = math.inf  # type: ignore[index,union-attr]

    run.trainer._update = spoil  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"not finite after update 4: 3.bias; the checkpoint of update 2 is good"):
        run.fit()
    assert [step for step, _ in run.folder.checkpoints()] == [2]


# --- Stopping and going on --------------------------------------------------------------------------------------------


def test_another_task_is_resumed_from_every_update(tmp_path: Path) -> None:
    options = {"epochs": 2, "ema_decay": 0.9, "optimizer": "sgd", "cooldown_epochs": 1}
    reference = Run(tmp_path / "reference", **options)
    reference.fit()
    wanted = (reference.folder.path / "last.safetensors").read_bytes()
    rows = [(row["step"], row["train_loss"], row["val_loss"], row["lr"]) for row in reference.metrics()]
    assert len(rows) == 3
    path = tmp_path / "run"
    stops = 0
    while True:
        run = Run(path, **options)
        real = run.trainer._update

        def stop(group: list[Batch], real: Any = real) -> None:
            real(group)
            os.kill(os.getpid(), signal.SIGTERM)

        run.trainer._update = stop  # type: ignore[method-assign]
        if stops == 3 * UPDATES:  # nothing is left but the last evaluation
            run.fit()
            break
        with pytest.raises(Stopped) as stopped:
            run.fit()
        stops += 1
        assert stopped.value.signal_number == signal.SIGTERM
        assert run.progress.updates == stops
    assert (path / "last.safetensors").read_bytes() == wanted
    assert [(row["step"], row["train_loss"], row["val_loss"], row["lr"]) for row in run.metrics()] == rows
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_rows_that_are_written_again_are_dropped_first(tmp_path: Path) -> None:
    """Wherever between two writes a run was killed, and from whatever checkpoint it goes on."""
    with RunFolder.create(tmp_path / "run", "a: 1\n", seed=0, command=[]) as folder:

        def write(epochs: int) -> None:
            for epoch in range(1, epochs + 1):
                for step in (5 * epoch - 4, 5 * epoch):
                    folder.add_skipped([(f"{step}.jpg", "broken")], split="train", epoch=epoch, step=step)
                folder.add_skipped([("val.jpg", "broken")], split="val", epoch=epoch, step=5 * epoch)
                folder.append_metrics({"epoch": epoch, "step": 5 * epoch})

        def left(path: Path, *columns: str) -> list[tuple[str, ...]]:
            with path.open(newline="") as file:
                return [tuple(row[column] for column in columns) for row in csv.DictReader(file)]

        for step, epoch, metrics, skipped in (
            (15, 3, 3, "1 5 v 6 10 v 11 15 v"),
            (15, 2, 2, "1 5 v 6 10 v 11 15"),  # the third epoch's updates are done, its evaluation is not
            (14, 2, 2, "1 5 v 6 10 v 11"),
            (10, 2, 2, "1 5 v 6 10 v"),
            (10, 1, 1, "1 5 v 6 10"),
            (5, 0, 0, "1 5"),
            (0, 0, 0, ""),
        ):
            write(3)
            folder.truncate_metrics(step, epoch)
            assert left(folder.metrics_csv, "epoch") == [(str(number),) for number in range(1, metrics + 1)]
            names = [name.removesuffix(".jpg") for (name,) in left(folder.skipped_csv, "image")]
            assert " ".join(names).replace("val", "v") == skipped
            folder.metrics_csv.unlink()
            folder.skipped_csv.unlink()


# --- Signals ----------------------------------------------------------------------------------------------------------


def test_only_a_second_ctrl_c_that_a_person_sends_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("openfastervit.training.signals.time.monotonic", lambda: now)
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)  # pytest may ignore some itself
    with StopSignals() as signals:
        assert signals.received is None
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            signal.raise_signal(number)  # within a second: a launcher passes on what the group got already
            assert signals.received == signal.SIGUSR1
        now += 2 * ECHO
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGUSR1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's job in the background
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received is None
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


class Attending(Toy):
    """A toy whose network has a stage of hierarchical attention."""

    def build(self) -> nn.Module:
        stage = HierarchicalAttention(16, 2, depth=1, window_size=1, carrier_size=1)
        return nn.Sequential(nn.Conv2d(1, 16, 1), stage, nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize("switched", [False, True])
def test_attention_by_kernels_is_asked_for(tmp_path: Path, switched: bool) -> None:
    trainer = Run(tmp_path / "run", Attending(), attention_kernels=switched, ema_decay=0.9).trainer
    assert trainer.state.average is not None
    for network in (trainer.network, trainer.state.average.module):
        assert [module.kernels for module in network.modules() if hasattr(module, "kernels")] == [switched]


def test_the_network_is_compiled_as_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode: modes.append(mode))
    for mode in ("default", "max-autotune-no-cudagraphs"):
        Run(tmp_path / mode, compile=True, compile_mode=mode)
    Run(tmp_path / "not")
    assert modes == ["default", "max-autotune-no-cudagraphs"]
    with pytest.raises(ValueError, match=r"compile_mode=max-autotune-no-cudagraphs .* set compile too"):
        LoopSettings(compile_mode="max-autotune-no-cudagraphs").check_loop()
