"""However a global batch is spread over processes, the run comes to the same weights and figures.

Nothing of these runs is drawn by a process itself (no mixup, no drop path), so that they differ by rounding alone. That
is why weights learn by SGD where batch norm is live: Adam makes whole steps of gradients that are rounding and nothing
else, as those of a bias before batch norm. Elsewhere Adam and LAMB have an eps that is large beside rounding.
"""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from openfastervit import create_model
from tests.distributed.launch import RECIPE, run_jobs, write_data

SGD = {"optimizer": "sgd", "lr": 0.05}
LIVE = {**SGD, "sync_batch_norm": True, "clip_grad": 0.05}
ADAMW = {"optimizer": "adamw", "optimizer_options": {"eps": 1e-3}, "lr": 1e-2, "freeze_batch_norm": True}
LAMB = {**ADAMW, "optimizer": "lamb"}
UNREADABLE = {**SGD, "max_unreadable": 0.5, "epochs": 1, "freeze_batch_norm": True, "eval_every": 1}
FSDP2 = {"sharding": "fsdp2"}

Job = dict[str, Any]


def read(folder: Path, name: str = "") -> dict[str, torch.Tensor]:
    """Weights: the result of the run, or a file of its last checkpoint."""
    if not name:
        return safetensors.torch.load_file(folder / "last.safetensors")
    return safetensors.torch.load_file(max((folder / "checkpoints").iterdir()) / name)


def figures(folder: Path) -> list[dict[str, float]]:
    """The table's rows, without times."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    times = ("images_per_second", "data_wait", "seconds")
    return [{name: float(value) for name, value in row.items() if value and name not in times} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, their average and all figures are equal to the tolerance of float32."""
    for name in ("model.safetensors", "ema.safetensors"):
        if name == "ema.safetensors" and not (max((one / "checkpoints").iterdir()) / name).exists():
            continue
        torch.testing.assert_close(read(other, name), read(one, name), rtol=1e-5, atol=2e-6)
    assert len(figures(one)) == len(figures(other)) > 0
    for row, expected in zip(figures(other), figures(one), strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)


class Runs:
    """The runs of this module, each made once: those of one process, of two, then what goes on from them, of three."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data = str(write_data(folder / "data"))
        # The first images of the second of two processes, and of the third of three.
        broken = str(write_data(folder / "broken", broken=(1, 3, 5, 7, 2, 8)))
        batch = {1: 8, 2: 4}

        def train(out: str, processes: int, *settings: dict[str, Any], **more: Any) -> Job:
            recipe = {**RECIPE, "data": data, "batch_size": batch.get(processes)}
            for part in (*settings, more):
                recipe |= part
            return {"do": "train", "out": str(folder / out), "recipe": recipe}

        def moved(source: str, out: str, processes: int, update: int = 3, **more: Any) -> list[Job]:
            changes = {"batch_size": batch[processes], **more}
            return [
                {"do": "cut", "source": str(folder / source), "out": str(folder / out), "update": update},
                {"do": "go_on", "out": str(folder / out), "changes": changes},
            ]

        def spoilt(out: str, processes: int, **more: Any) -> Job:
            return train(out, processes, UNREADABLE, data=broken, batch_size=12 // processes, **more)

        self.do(
            1,
            train("live 1", 1, LIVE),
            train("live accumulated 1", 1, LIVE, batch_size=4, accumulate=2),
            train("adamw 1", 1, ADAMW),
            train("adamw accumulated 1", 1, ADAMW, batch_size=4, accumulate=2),
            train("lamb 1", 1, LAMB),
            spoilt("spoilt 1", 1),
        )
        drawn = {"mixup": 0.8, "drop_path": 0.2, "ema_warmup": True, "lr": 0.01}
        self.two = self.do(
            2,
            train("live copies", 2, LIVE),
            train("live sharded", 2, LIVE, FSDP2),
            train("live accumulated copies", 2, LIVE, batch_size=2, accumulate=2),
            train("live accumulated sharded", 2, LIVE, FSDP2, batch_size=2, accumulate=2, channels_last=True),
            train("adamw copies", 2, ADAMW, channels_last=True),
            train("adamw sharded", 2, ADAMW, FSDP2, gradient_checkpointing=True),
            train("lamb sharded", 2, LAMB, FSDP2),
            *moved("adamw 1", "adamw 1 to copies", 2),
            *moved("adamw 1", "adamw 1 to sharded", 2, sharding="fsdp2"),
            *moved("adamw copies", "adamw copies to sharded", 2, sharding="fsdp2"),
            *moved("adamw sharded", "adamw sharded to copies", 2, sharding="none"),
            *moved("lamb 1", "lamb 1 to sharded", 2, sharding="fsdp2"),
            *moved("adamw accumulated 1", "adamw accumulated 1 to copies", 2, accumulate=1),
            train("own copies", 2, drawn),
            *moved("own copies", "own copies again", 2, update=6),
            train("own sharded", 2, drawn, FSDP2),
            *moved("own sharded", "own sharded again", 2, update=6),
            spoilt("spoilt copies", 2),
            spoilt("spoilt sharded", 2, sharding="fsdp2", ema_decay=None, mesa=0),
            *moved("adamw 1", "adamw of another batch", 2, accumulate=2),
            train("muon", 2, ADAMW, FSDP2, optimizer="muon", optimizer_options={}),
            train("odd norms", 2, LIVE, model="test_efficientnet", model_options={}),
            {"do": "batch_norm", "dtype": "float32"},
            {"do": "batch_norm", "dtype": "float64"},
            {"do": "read_first", "path": str(folder / "adamw 1" / "recipe.yaml")},
            {"do": "read_first", "path": str(folder / "nothing.yaml")},
        )
        self.do(
            1,
            *moved("adamw copies", "adamw copies to 1", 1),
            *moved("adamw sharded", "adamw sharded to 1", 1, sharding="none"),
            *moved("lamb sharded", "lamb sharded to 1", 1, sharding="none"),
        )
        self.three = self.do(
            3,
            spoilt("spoilt copies of 3", 3),
            spoilt("spoilt sharded in 3", 3, sharding="fsdp2", ema_decay=None, mesa=0),
        )

    def do(self, processes: int, *jobs: Job) -> dict[str, Any]:
        results = run_jobs(self.folder, processes, jobs)
        return {
            Path(str(job.get("out", i))).name: result for i, (job, result) in enumerate(zip(jobs, results, strict=True))
        }

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


pytestmark = [pytest.mark.early, pytest.mark.timeout(600)]  # one process starts the runs


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("live 1", "live copies"),
        ("live 1", "live sharded"),
        ("live accumulated 1", "live accumulated copies"),
        ("live accumulated 1", "live accumulated sharded"),
        ("adamw 1", "adamw accumulated 1"),
        ("adamw 1", "adamw copies"),
        ("adamw 1", "adamw sharded"),
        ("lamb 1", "lamb sharded"),
    ],
)
def test_two_processes_equal_one(runs: Runs, one: str, other: str) -> None:
    assert_same_run(runs[one], runs[other])


def test_the_runs_could_have_differed(runs: Runs) -> None:
    """They learn much more than the tolerance, and other settings lead elsewhere."""
    first = safetensors.torch.load_file(min((runs["live 1"] / "checkpoints").iterdir()) / "model.safetensors")
    last = read(runs["live 1"], "model.safetensors")
    for others in (first, read(runs["live accumulated 1"], "model.safetensors")):
        assert max(float((others[name].float() - value.float()).abs().max()) for name, value in last.items()) > 1e-3
    assert any("train_mesa" in row for row in figures(runs["live 1"]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("adamw 1", "adamw 1 to copies"),
        ("adamw 1", "adamw 1 to sharded"),
        ("adamw 1", "adamw copies to 1"),
        ("adamw 1", "adamw copies to sharded"),
        ("adamw 1", "adamw sharded to 1"),
        ("adamw 1", "adamw sharded to copies"),
        ("adamw 1", "adamw accumulated 1 to copies"),
        ("lamb 1", "lamb 1 to sharded"),
        ("lamb 1", "lamb sharded to 1"),
    ],
)
def test_a_run_goes_on_with_other_processes(runs: Runs, one: str, other: str) -> None:
    """From a checkpoint in the middle of the first epoch; weights, optimiser and average are all needed for it."""
    assert_same_run(runs[one], runs[other])


@pytest.mark.parametrize("name", ["own copies", "own sharded"])
def test_resuming_changes_no_bit(runs: Runs, name: str) -> None:
    """Also where each process has batch norm of its own, draws its own numbers, and is taught by the average."""
    for file in ("model.safetensors", "ema.safetensors"):
        torch.testing.assert_close(read(runs[f"{name} again"], file), read(runs[name], file), rtol=0, atol=0)
    assert figures(runs[f"{name} again"]) == figures(runs[name])


@pytest.mark.parametrize("name", ["own copies", "own sharded", "live sharded", "adamw copies"])
def test_figures_are_those_of_the_saved_network(runs: Runs, name: str) -> None:
    """Which has one set of statistics, whatever each process had seen."""
    import timm.data
    from torchvision.datasets import ImageFolder

    options = {**RECIPE["model_options"], "num_classes": 3}
    network: Any = create_model("fastervit_0", False, str(runs[name] / "last.safetensors"), **options)
    network.set_input_size((64, 64))
    network.eval()
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("fastervit_0").to_dict())
    images = ImageFolder(str(runs["data"] / "val"), timm.data.create_transform(**{**config, "input_size": (3, 64, 64)}))
    with torch.no_grad():
        logits = network(torch.stack([image for image, _ in images]))
    labels = torch.tensor(images.targets)
    last = figures(runs[name])[-1]
    assert last["val_images"] == 17
    assert last["val_top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item(), rel=1e-6)
    assert last["val_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["spoilt copies", "spoilt sharded", "spoilt copies of 3", "spoilt sharded in 3"])
def test_each_image_is_counted_once(runs: Runs, name: str) -> None:
    """17 images, of which 6 cannot be read: some processes have fewer batches, and batches with nothing in them."""
    row, expected = figures(runs[name])[-1], figures(runs["spoilt 1"])[-1]
    assert row["val_images"] == expected["val_images"] == 11
    if "sharded" in name:  # they are judged without an average
        other = runs["spoilt copies" + name.removeprefix("spoilt sharded").replace("in", "of")]
        assert_same_weights(runs[name], other)
    else:
        assert row == pytest.approx(expected, rel=1e-5)
        assert math.isclose(row["val_top1"], expected["val_top1"], rel_tol=1e-12)
    skipped = (runs[name] / "skipped.csv").read_text()
    assert sorted(line.split(",")[0] for line in skipped.splitlines()[1:]) == sorted(
        line.split(",")[0] for line in (runs["spoilt 1"] / "skipped.csv").read_text().splitlines()[1:]
    )


def assert_same_weights(one: Path, other: Path) -> None:
    torch.testing.assert_close(read(one, "model.safetensors"), read(other, "model.safetensors"), rtol=1e-5, atol=2e-6)


def test_another_batch_is_refused(runs: Runs) -> None:
    for result in runs.two["adamw of another batch"]:
        assert "an update of this run has 8 images" in result["error"]
        assert "here it would have 16" in result["error"]


def test_an_optimizer_that_cannot_be_sharded_is_refused(runs: Runs) -> None:
    """Muon would take the piece of a matrix for all of it, without an error."""
    for result in runs.two["muon"]:
        assert "optimizer='muon' does not work on weights that FSDP2 shards" in result["error"]
    assert not runs["muon"].exists()


def test_batch_norms_that_cannot_be_synchronised_are_refused(runs: Runs) -> None:
    for result in runs.two["odd norms"]:
        assert "sync_batch_norm: on CPUs it knows BatchNorm2d alone" in result["error"]
        assert "BatchNormAct2d" in result["error"]
    assert not runs["odd norms"].exists()


def test_batch_norm_over_processes_is_that_of_all_images(runs: Runs) -> None:
    (single, double) = (result for name, result in runs.two.items() if name.isdigit() and "output" in result[0])
    for apart, tolerance in ((single, 2e-4), (double, 1e-12)):
        for process in apart:
            assert max(process.values()) < tolerance, process


def test_the_first_process_reads_for_all(runs: Runs) -> None:
    *_, found, missing = runs.two.values()
    assert found[0] == found[1] == (runs["adamw 1"] / "recipe.yaml").read_text()
    assert missing[0] == missing[1]
    assert "nothing.yaml" in missing[0]["error"]
