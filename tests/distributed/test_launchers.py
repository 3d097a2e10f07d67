"""torchrun and ``accelerate launch``, on one machine and as on several: the commands of docs/many-machines.md."""

import contextlib
import csv
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.conftest import REPOSITORY
from tests.distributed.launch import free_port, run, started, torchrun, write_data, write_recipe

pytestmark = [pytest.mark.early, pytest.mark.timeout(600)]

FASTERVIT = ["-m", "openfastervit_cli"]
GUIDE = REPOSITORY / "docs" / "many-machines.md"


def guides(start: str, recipe: Path, **changes: str) -> list[list[str]]:
    """The commands of the guide that start so, with our numbers and places in place of a cluster's."""
    lines = [line for block in re.findall(r"(?ms)^```sh\n(.*?)^```$", GUIDE.read_text()) for line in block.splitlines()]
    places = {"recipes/fastervit_0_in1k.yaml": str(recipe), "imagenet": str(recipe.parent), **changes}
    return [[places.get(word, word) for word in shlex.split(line)] for line in lines if line.startswith(start)]


def test_every_command_of_the_guide_is_run_here(recipe: Path) -> None:
    starts = ("torchrun --standalone", "torchrun --nnodes", "accelerate launch --num", "accelerate launch --use_fsdp")
    assert [len(guides(start, recipe)) for start in starts] == [1, 2, 1, 1]
    assert len(guides("", recipe)) == 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def recipe(data: Path) -> Path:
    return write_recipe(data / "recipe.yaml", data, epochs=1, batch_size=4, sync_batch_norm=True, save_steps=None)


def figures(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def workers(process: "subprocess.Popen[str]") -> list[int]:
    """The training processes under a launcher, by their rank."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"\nPPid:\t{process.pid}\n" in (place / "status").read_text():
                environment = (place / "environ").read_bytes().decode().split("\0")
                rank = next(entry for entry in environment if entry.startswith("RANK="))
                found[int(rank[5:])] = int(place.name)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
def test_two_launchers_as_on_two_machines(recipe: Path, tmp_path: Path) -> None:
    """The second one works in another folder, and sees nothing of the run's; then the run goes on there."""
    launchers = guides("torchrun --nnodes", recipe, **{"8": "1", "10.0.0.1": "127.0.0.1", "29500": str(free_port())})
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()

    def both(*arguments: str) -> None:
        first, second = ([*command[: command.index("train")], *arguments] for command in launchers)
        with started(first, cwd=folders[0]) as one, started(second, cwd=folders[1]) as two:
            ends = [process.communicate(timeout=240)[0] for process in (one, two)]
            assert one.returncode == two.returncode == 0, "\n".join(ends)

    both(*launchers[0][launchers[0].index("train") :], "--epochs", "2", "--save-steps", "4")
    assert [row["epoch"] for row in figures(tmp_path / "first" / "runs" / "fastervit_0")] == ["1", "2"]
    assert not (tmp_path / "second" / "runs").exists()
    whole = safetensors.torch.load_file(tmp_path / "first" / "runs" / "fastervit_0" / "last.safetensors")
    for checkpoint in (tmp_path / "first" / "runs" / "fastervit_0" / "checkpoints").iterdir():
        if not checkpoint.name.endswith("4"):
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()
    both("train", "--resume", "runs/fastervit_0")
    assert not (tmp_path / "second" / "runs").exists()
    again = safetensors.torch.load_file(tmp_path / "first" / "runs" / "fastervit_0" / "last.safetensors")
    torch.testing.assert_close(again, whole, rtol=0, atol=0)


@pytest.mark.slow
def test_accelerate_launch(recipe: Path, tmp_path: Path) -> None:
    """Copies and, where it is asked for, shards: the same figures."""
    # An own settings file of Accelerate's, if there is one, has no say here.
    options = {"environment": {"HF_HOME": str(tmp_path / "none")}, "cwd": tmp_path, "seconds": 240}
    port = ["--main_process_port", str(free_port())]
    (copying,) = guides("accelerate launch --num", recipe, **{"8": "2"})
    (sharding,) = guides("accelerate launch --use_fsdp", recipe, **{"8": "2"})
    run([*copying[:2], "--multi_gpu", *port, *copying[2:]], **options)  # which it sees by itself where there are GPUs
    printed = run([*sharding[:2], *port, *sharding[2:]], **options)
    (copies,), (shards,) = figures(tmp_path / "runs/fastervit_0"), figures(tmp_path / "runs/fastervit_0_sharded")
    assert int(copies["step"]) == int(shards["step"]) == 33 // 8, "not two processes of four images each"
    for name in ("train_loss", "val_loss", "val_top1"):
        assert float(shards[name]) == pytest.approx(float(copies[name]), rel=1e-5), printed


@pytest.mark.parametrize("to", ["all", pytest.param("one process", marks=pytest.mark.slow)])
def test_sigterm_saves_on_all_processes(recipe: Path, tmp_path: Path, to: str) -> None:
    out = tmp_path / "run"
    (command,) = guides("torchrun --standalone", recipe, **{"8": "2", "runs/fastervit_0": str(out)})
    more = ["--epochs", "500", "--log-every", "1"]
    log = tmp_path / "log"
    with log.open("w") as file, started([*command, *more], stdout=file) as process:
        wait_for(lambda: (out / "metrics.csv").exists() and bool(figures(out)), process)
        seen = workers(process)
        assert len(seen) == 2
        # As Slurm does to all processes of a step; torchrun passes it on, so that they get it twice.
        for pid in [process.pid, *seen] if to == "all" else seen[1:]:
            os.kill(pid, signal.SIGTERM)
        assert process.wait(timeout=120) == 1, "torchrun's own exit code, whatever that of its workers is"
    printed = log.read_text()
    assert "stopped by signal 15; go on with: fastervit train --resume" in printed
    if to == "one process":  # torchrun tells of the first worker that ended
        assert re.search(r"exitcode\s*: 143", printed), printed
    checkpoint = max((out / "checkpoints").iterdir())
    steps = int(checkpoint.name.rpartition("-")[2])
    assert steps >= int(figures(out)[-1]["step"])
    # The checkpoint is whole: it goes on, until as many epochs as there are now are done.
    with log.open("w") as file, started(torchrun(2, *FASTERVIT, "train", "--resume", str(out)), stdout=file) as process:
        before = len(figures(out))
        wait_for(lambda: len(figures(out)) > before, process)
    assert f"update {steps}" in log.read_text()


def test_an_error_ends_all_processes(data: Path, tmp_path: Path) -> None:
    """One that only the first process meets: its folder is taken."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note.txt").write_text("mine")
    recipe = write_recipe(tmp_path / "recipe.yaml", data, batch_size=4)
    command = torchrun(2, *FASTERVIT, "train", "--recipe", str(recipe), "--out", str(tmp_path / "taken"))
    printed = run(command, code=1, seconds=240)
    assert "fastervit: error: " in printed
    assert [entry.name for entry in (tmp_path / "taken").iterdir()] == ["note.txt"]


def test_the_slurm_script(tmp_path: Path) -> None:
    """Slurm's commands and torchrun are played by scripts: a first start, a signal ahead of the end, a second start."""
    (script,) = re.findall(r"(?ms)^```bash\n(.*?)^```$", GUIDE.read_text())
    (tmp_path / "job.sh").write_text(script)
    players = {
        "srun": 'export SLURM_NODEID=0; exec "$@"',
        "scontrol": """if [ "$1" = show ]; then printf "node-a\\nnode-b\\n"; else echo "$@" >> scontrol.log; fi""",
        "scancel": 'echo "$@" >> scancel.log; kill -TERM "$(cat torchrun.pid)"',
        "torchrun": """echo $$ > torchrun.pid
            trap 'echo saved >> torchrun.log; exit 1' TERM
            echo "$@" >> torchrun.log
            mkdir -p runs/fastervit_0
            touch runs/fastervit_0/recipe.yaml
            while true; do sleep 0.05; done""",
    }
    for name, body in players.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_ID": "77", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node-[a-b]"}
    log = tmp_path / "torchrun.log"
    options = "--nnodes 2 --node-rank 0 --nproc-per-node 8 --master-addr node-a --master-port 29500"
    new = "--recipe recipes/fastervit_0_in1k.yaml --data /data/imagenet --out runs/fastervit_0"
    told = []
    for what in (new, "--resume runs/fastervit_0"):
        told += [f"{options} -m openfastervit_cli train {what}", "saved"]
        with started(["bash", "job.sh"], cwd=tmp_path, environment=environment) as job:
            wait_for(lambda: log.exists() and log.read_text().splitlines() == told[:-1], job, seconds=20)  # noqa: B023
            os.kill(job.pid, signal.SIGUSR1)
            printed, _ = job.communicate(timeout=20)
        assert log.read_text().splitlines() == told, printed
    assert (tmp_path / "scancel.log").read_text().splitlines() == ["--signal=TERM 77"] * 2
    assert (tmp_path / "scontrol.log").read_text().splitlines() == ["requeue 77"] * 2
