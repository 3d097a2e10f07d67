"""The documents on training: their commands are run, their tables are the recipes' figures."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from torch.distributed.run import get_args_parser

import openfastervit_cli
from openfastervit.training.recipe import ClassificationRecipe, FinetuneRecipe, read_recipe
from tests.conftest import REPOSITORY
from tests.docs.reader import SHORT, blocks, commands, settle, shortened, write_photos

DOCUMENTS = [REPOSITORY / "docs" / f"{name}.md" for name in ("training", "imagenet", "resuming")]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: what torchrun would start is run once, its own options go through its parser."""
    monkeypatch.chdir(tmp_path)
    settle(tmp_path)
    seen = commands(document)
    assert seen
    for command in seen:
        words, _, redirected = command.partition(" > ")
        first, *rest = shlex.split(shortened(words))
        if first == "torchrun":
            launch = get_args_parser().parse_args(rest)
            assert launch.module
            assert launch.training_script == "openfastervit_cli"
            rest = launch.training_script_args
        else:
            assert first == "fastervit", command
        code = openfastervit_cli.main(rest)
        told = capsys.readouterr()
        assert code == 0, f"{command}\n{told.out}{told.err}"
        if redirected:
            Path(redirected).write_text(told.out)


def test_the_run_folder_holds_what_the_document_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    (tmp_path / "photos" / "train" / "cat" / "broken.jpg").write_bytes(b"")
    words = ["train", "--data", "photos", "--out", "run", *SHORT, "--max-unreadable", "1"]
    assert openfastervit_cli.main(words) == 0
    text = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
    table = text.partition("## The run's folder")[2].partition("\n\nTensorBoard")[0]
    told = {
        name.rstrip("/") for row in re.findall(r"(?m)^\| (`.+?`) \|", table) for name in re.findall(r"`(.+?)`", row)
    }
    found = {path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")}
    assert told - {"skipped.csv"} <= found <= told  # whether the broken image was drawn is chance


# --- Figures


def test_the_tables_of_recipes_are_right() -> None:
    text = (REPOSITORY / "docs" / "imagenet.md").read_text(encoding="utf-8")
    scratch = re.findall(r"(?m)^\| `(fastervit_\d_in1k)` \|(.+)\| (\S+) / (\S+) \| no \|$", text)
    assert len(scratch) == 7
    for name, cells, top1, top5 in scratch:
        recipe = read_recipe(REPOSITORY / "recipes" / f"{name}.yaml", ClassificationRecipe)
        optimizer, *numbers = [cell.strip() for cell in cells.strip(" |").split("|")]
        assert optimizer == recipe.optimizer
        expected = [recipe.weight_decay, recipe.warmup_epochs, recipe.mesa, recipe.drop_path]
        assert [float(number) for number in numbers] == expected
        assert f"top-1 {top1} %, top-5 {top5} %" in (REPOSITORY / "recipes" / f"{name}.yaml").read_text()
    tuned = re.findall(r"(?m)^\| `(fastervit_4_w(\d+)_(\d+)_in21k_ft_in1k)` \| (\d+) \| (\d+), (\d+) \| (\S+) \|", text)
    assert len(tuned) == 4
    for name, window, size, told_size, third, fourth, top1 in tuned:
        assert (size, window, str(int(window) // 2)) == (told_size, third, fourth)
        assert f"top-1 {top1} %" in (REPOSITORY / "recipes" / f"{name}.yaml").read_text()


def test_the_published_robustness_is_as_specified() -> None:
    """Written down from the specification a second time."""
    text = (REPOSITORY / "docs" / "imagenet.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| `fastervit_\d` \| (\S+) \| (\S+) \| (\S+) \|$", text)
    assert [" ".join(row) for row in rows] == [
        *("23.9 45.9 70.9", "31.2 47.5 72.6", "38.2 49.6 73.7", "44.2 51.9 75.0"),
        *("49.0 56.0 75.7", "52.7 56.9 76.0", "53.7 57.1 76.1"),
    ]


def test_options_in_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Every `--option` that a sentence names is one of the commands'."""
    for command in ("train", "finetune", "evaluate"):
        assert openfastervit_cli.main([command, "--help"]) == 0
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    for document in [REPOSITORY / "README.md", *DOCUMENTS]:
        prose = re.sub(r"(?ms)^```.*?^```$", "", document.read_text(encoding="utf-8"))
        for option in re.findall(r"`(--[\w-]+)", prose):
            assert option in known, f"{document.name}: {option}"


def test_numbers_of_the_defaults_in_the_text() -> None:
    recipe = FinetuneRecipe()
    training = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
    assert f"{recipe.epochs} epochs, mild augmentation" in training
    assert recipe.layer_decay == 0.75
    assert "shrinks by a quarter with each layer" in training
    assert recipe.val_fraction == 0.1
    assert "a tenth of each class is held out" in training
    resuming = (REPOSITORY / "docs" / "resuming.md").read_text(encoding="utf-8")
    assert f"every {recipe.save_minutes:.0f} minutes" in resuming
    assert recipe.keep_checkpoints == 2
    assert "Two are kept" in resuming
    assert f"Above {recipe.max_unreadable:.0%} of them" in " ".join(resuming.split()).replace("1 %", "1%")


# --- Slurm

SRUN = """#!/bin/bash
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" &
echo $! > pid
wait $!
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi
"""


@pytest.mark.timeout(180)
def test_the_slurm_script_is_requeued_and_resumes(tmp_path: Path) -> None:
    """The script as it stands, with a stand-in for Slurm that starts one process."""
    write_photos(tmp_path / "imagenet")
    (script,) = blocks(REPOSITORY / "docs" / "resuming.md", "bash")
    recipe = "recipes/fastervit_0_in1k.yaml"
    assert recipe in script
    (tmp_path / "recipes").mkdir()
    settings = dict(zip(SHORT[::2], SHORT[1::2], strict=False))
    (tmp_path / recipe).write_text(
        yaml.safe_dump(
            {
                "model": "fastervit_0",
                "model_options": yaml.safe_load(SHORT[-1]),
                "img_size": [int(settings["--img-size"])],
                "epochs": 12,
                "batch_size": 4,
                "workers": 0,
                "device": "cpu",
            }
        )
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        script = script.replace("29500", str(free.getsockname()[1]))
    (tmp_path / "job.sh").write_text(script)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost"}
    environment = {**os.environ, **job, "PATH": f"{tmp_path}:{BIN}:{os.environ['PATH']}"}

    def submit() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "job.sh"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    first = submit()
    checkpoints = tmp_path / "runs" / "fastervit_0_in1k" / "checkpoints"
    until = time.monotonic() + 90
    while not list(checkpoints.glob("step-*")) and time.monotonic() < until and first.poll() is None:
        time.sleep(0.05)
    assert first.poll() is None, first.communicate()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 143, out + err
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    second = submit()
    out, err = second.communicate(timeout=90)
    assert second.returncode == 0, out + err
    assert "resuming" in err
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    rows = (checkpoints.parent / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, 13))


@pytest.fixture(autouse=True)
def _switches_put_back() -> object:
    """Training in this process makes torch deterministic."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
