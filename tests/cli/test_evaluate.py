"""``fastervit evaluate``: its figures beside those of torchvision, torch and scikit-learn by hand."""

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, log_loss, recall_score, top_k_accuracy_score
from torch import nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

from openfastervit.data.imagenet import imagenet_classes, imagenet_subset
from openfastervit.training.recipe import ClassificationRecipe, make_recipe
from tests.cli.conftest import Run
from tests.networks import tiny
from tests.pocket import CLASSES, INPUT, OPTIONS, picture, pocket, write_broken, write_checkpoint

QUICK = ("--workers", 0, "--device", "cpu")


def write_images(folder: Path, classes: Sequence[str], count: int = 1, side: int = 40) -> Path:
    """JPEGs of several sizes, ``count`` a class."""
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            size = (side + 7 * i, side + 15 - 5 * i)
            picture(place * count + i, size=size).save(folder / name / f"{i}.jpg", quality=90)
    return folder


def prepare(*, resize: int | tuple[int, int], crop: int, mean: Sequence[float], std: Sequence[float]) -> Any:
    return transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def logits_by_hand(network: nn.Module, folder: Path, transform: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and torchvision's labels: those of the sorted folders."""
    images = ImageFolder(folder, transform=transform)
    with torch.no_grad():
        found = torch.cat([network(chunk) for chunk in torch.stack([image for image, _ in images]).split(50)])
    return found.double().numpy(), np.array(images.targets)


def figures_by_hand(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> dict[str, float]:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    every = range(logits.shape[1])
    confidence, right = shares.max(1), shares.argmax(1) == labels
    place = np.ceil(confidence * bins) - 1
    error = sum(abs(right[place == i].sum() - confidence[place == i].sum()) for i in range(bins)) / len(labels)
    five = top_k_accuracy_score(labels, shares, k=5, labels=every) if len(every) > 5 else 1.0
    return {
        "top1": 100 * right.mean(),
        "top5": 100 * five,
        "loss": log_loss(labels, shares, labels=every),
        "ece": error,
        "images": len(labels),
    }


@pytest.fixture
def figures(fastervit: Run) -> Callable[..., dict[str, Any]]:
    """The figures that the command prints as JSON."""

    def run(*args: object) -> dict[str, Any]:
        outcome = fastervit("evaluate", *args, *QUICK, "--json")
        assert outcome.code == 0, outcome.err
        found: dict[str, Any] = json.loads(outcome.out)
        return found

    return run


def agree(found: dict[str, Any], expected: dict[str, float]) -> None:
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def ants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("ants") / "photos", CLASSES, 7)


BY_HAND = {"mean": INPUT["mean"], "std": INPUT["std"]}


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_figures_are_those_by_hand(figures, checkpoint: Path, ants: Path, batch_size: int):
    transform = prepare(resize=math.floor(64 / 0.9), crop=64, **BY_HAND)
    expected = figures_by_hand(*logits_by_hand(pocket(), ants, transform))
    found = figures("--checkpoint", checkpoint, "--data", ants, "--batch-size", batch_size)
    agree(found, expected)
    assert {k: found[k] for k in ("matched", "restricted", "classes", "unreadable", "split")} == {
        "matched": "same names", "restricted": False, "classes": 3, "unreadable": 0, "split": "val",
    }  # fmt: skip


def test_images_may_be_squashed_and_larger(figures, checkpoint: Path, ants: Path):
    transform = prepare(resize=(96, 96), crop=96, **BY_HAND)
    expected = figures_by_hand(*logits_by_hand(pocket(), ants, transform))
    options = ("--img-size", 96, "--crop-mode", "squash", "--crop-pct", 1)
    agree(figures("--checkpoint", checkpoint, "--data", ants, *options), expected)


def test_the_table_and_the_report(fastervit: Run, checkpoint: Path, ants: Path, tmp_path: Path):
    transform = prepare(resize=math.floor(64 / 0.9), crop=64, **BY_HAND)
    logits, labels = logits_by_hand(pocket(), ants, transform)
    expected, predicted = figures_by_hand(logits, labels), logits.argmax(1)
    out = tmp_path / "new" / "report"
    outcome = fastervit("evaluate", "--checkpoint", checkpoint, "--data", ants, "--out", out, *QUICK)
    assert outcome.code == 0
    assert outcome.err == f"fastervit: report in {out}\n"
    told = dict(line.split(maxsplit=1) for line in outcome.out.splitlines()[:10])
    assert told["top-1"] == f"{expected['top1']:.2f} %"
    assert told["ECE"] == f"{expected['ece']:.4f}"
    assert told["images"] == "21"
    assert told["prepared"] == "64 x 64, center 0.9, bicubic"
    assert told["classes"] == "3, matched by name; the network chooses among 3"
    rows = [line.split() for line in outcome.out.splitlines()[-3:]]
    recalls = recall_score(labels, predicted, average=None)
    assert [(row[0], row[-1]) for row in rows] == [(n, f"{r:.4f}") for n, r in zip(CLASSES, recalls, strict=True)]

    with (out / "confusion.csv").open() as file:
        counts = [[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
    assert counts == confusion_matrix(labels, predicted).tolist()
    written = json.loads((out / "evaluation.json").read_text())
    agree(written, expected)
    assert written["about"]["preparation"]["crop_pct"] == 0.9
    assert written["about"]["checkpoint"] == str(checkpoint)
    assert "torch" in written["about"]["versions"]
    assert (out / "per_class.csv").is_file()


# --- ImageNet and what resembles it


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with ImageNet's outputs, in a file that names none of them."""
    network = tiny(**{**OPTIONS, "num_classes": 1000}).eval()
    told = {"overrides": {**OPTIONS, "num_classes": 1000}, "classes": None}
    return write_checkpoint(tmp_path_factory.mktemp("thousand") / "thousand.safetensors", network, **told)


def thousand_by_hand(folder: Path) -> tuple[np.ndarray, list[str]]:
    network = tiny(**{**OPTIONS, "num_classes": 1000}).eval()
    logits, labels = logits_by_hand(network, folder, prepare(resize=math.floor(64 / 0.9), crop=64, **BY_HAND))
    names = sorted(entry.name for entry in folder.iterdir())
    return logits, [names[label] for label in labels]


def test_imagenet_a_is_told_among_its_200_classes(figures, fastervit: Run, thousand: Path, tmp_path: Path):
    subset = imagenet_subset("imagenet-a")
    data = write_images(tmp_path / "imagenet-a", subset)
    logits, wnids = thousand_by_hand(data)
    kept = [imagenet_classes().index(wnid) for wnid in subset]
    assert len(kept) == 200
    labels = np.array([subset.index(wnid) for wnid in wnids])
    found = figures("--checkpoint", thousand, "--data", data)
    agree(found, figures_by_hand(logits[:, kept], labels))
    assert (found["matched"], found["restricted"], found["classes"]) == ("imagenet-a", True, 200)

    among_all = np.array([imagenet_classes().index(wnid) for wnid in wnids])
    found = figures("--checkpoint", thousand, "--data", data, "--no-restrict")
    agree(found, figures_by_hand(logits, among_all))
    assert (found["restricted"], found["classes"]) == (False, 1000)
    table = fastervit("evaluate", "--checkpoint", thousand, "--data", data, *QUICK).out
    assert "200, matched as ImageNet-A; the network chooses among 200 of 1000" in table
    assert subset[0] not in table  # too many classes to tell each


def test_imagenet_v2_is_matched_by_number(figures, thousand: Path, tmp_path: Path):
    data = write_images(tmp_path / "v2", [str(number) for number in range(1000)], side=34)
    logits, numbers = thousand_by_hand(data)
    assert numbers[:3] == ["0", "1", "10"]  # as text sorts them
    found = figures("--checkpoint", thousand, "--data", data, "--batch-size", 200)
    agree(found, figures_by_hand(logits, np.array([int(number) for number in numbers])))
    assert (found["matched"], found["images"]) == ("imagenet-v2", 1000)


@pytest.mark.skipif(
    "OPENFASTERVIT_SAMPLE_DATA" not in os.environ,
    reason="OPENFASTERVIT_SAMPLE_DATA names no folder with imagenette-val-224",
)
def test_imagenette_goes_to_its_places_among_1000(figures, thousand: Path, tmp_path: Path):
    places = {
        "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497,
        "n03394916": 566, "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
    }  # fmt: skip
    sample = Path(os.environ["OPENFASTERVIT_SAMPLE_DATA"], "imagenette-val-224")
    data = tmp_path / "imagenette"
    for wnid in places:
        (data / wnid).mkdir(parents=True)
        for photo in sorted((sample / wnid).iterdir())[:6]:
            (data / wnid / photo.name).symlink_to(photo.resolve())
    logits, wnids = thousand_by_hand(data)
    labels = np.array([places[wnid] for wnid in wnids])
    found = figures("--checkpoint", thousand, "--data", data)
    agree(found, figures_by_hand(logits, labels))
    assert (found["matched"], found["restricted"], found["classes"]) == ("imagenet-1k", False, 1000)
    kept = sorted(places.values())
    ranks = np.array([kept.index(label) for label in labels])
    agree(figures("--checkpoint", thousand, "--data", data, "--restrict"), figures_by_hand(logits[:, kept], ranks))


# --- Which classes, which data


def test_a_classes_file_names_the_outputs(figures, fails, ants: Path, tmp_path: Path):
    plain = write_checkpoint(tmp_path / "plain.safetensors", classes=None)
    fails("evaluate", "--checkpoint", plain, "--data", ants, *QUICK, says=["'ant', 'bee', 'cat'", "--classes FILE"])
    order = ["cat", "ant", "bee"]
    (tmp_path / "names.txt").write_text("\n".join(order) + "\n\n")
    logits, labels = logits_by_hand(pocket(), ants, prepare(resize=math.floor(64 / 0.9), crop=64, **BY_HAND))
    expected = figures_by_hand(logits, np.array([order.index(CLASSES[label]) for label in labels]))
    agree(figures("--checkpoint", plain, "--data", ants, "--classes", tmp_path / "names.txt"), expected)
    (tmp_path / "names.txt").write_text("cat\nant\n")
    says = ["names.txt names 2 classes, the network has 3 outputs"]
    fails("evaluate", "--checkpoint", plain, "--data", ants, "--classes", tmp_path / "names.txt", *QUICK, says=says)


def test_a_split_is_taken_where_the_data_is_divided(figures, fails, checkpoint: Path, tmp_path: Path):
    write_images(tmp_path / "data" / "train", CLASSES, 3)
    write_images(tmp_path / "data" / "val", CLASSES, 2)
    assert figures("--checkpoint", checkpoint, "--data", tmp_path / "data")["images"] == 6
    assert figures("--checkpoint", checkpoint, "--data", tmp_path / "data", "--split", "train")["images"] == 9
    args = ("evaluate", "--checkpoint", checkpoint, "--data", tmp_path / "data", "--split", "vall")
    fails(*args, *QUICK, says=["vall", "train, val"])


def write_run(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    write_checkpoint(folder / "best.safetensors")
    recipe = make_recipe({"img_size": [64], **settings}, ClassificationRecipe)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    return folder


def test_a_run_is_evaluated_on_what_it_held_out(figures, ants: Path, tmp_path: Path):
    run = write_run(tmp_path / "run", data=str(ants), val_fraction=0.3)
    held_out = figures("--checkpoint", run)
    assert (held_out["images"], held_out["split"]) == (6, "val, held out")
    rest = figures("--checkpoint", run, "--split", "train")
    assert rest["images"] == 15
    # Together they are all images, none twice.
    whole = figures("--checkpoint", run, "--data", ants)
    share = [part["images"] * part["loss"] for part in (held_out, rest)]
    assert sum(share) == pytest.approx(21 * whole["loss"])
    assert whole["checkpoint"] == str(run / "best.safetensors")


def test_a_run_whose_data_or_network_is_gone(fails, tmp_path: Path):
    run = write_run(tmp_path / "run", data=str(tmp_path / "gone"))
    fails("evaluate", "--checkpoint", run, *QUICK, says=["gone", "--data"])
    (run / "best.safetensors").unlink()
    fails("evaluate", "--checkpoint", run, *QUICK, says=["best.safetensors", "finished an epoch"])


# --- Images that cannot be read


def test_unreadable_images_are_in_no_figure(fastervit: Run, fails, checkpoint: Path, tmp_path: Path):
    data = write_images(tmp_path / "data", CLASSES, 4)
    whole = write_images(tmp_path / "whole", CLASSES, 4)
    write_broken(data / "bee" / "2.jpg", "jpg")
    (whole / "bee" / "2.jpg").unlink()
    args = ("evaluate", "--checkpoint", checkpoint, *QUICK)
    outcome = fastervit(*args, "--data", data, "--max-unreadable", 0.1, "--out", tmp_path / "report", "--json")
    assert outcome.code == 3
    found, expected = json.loads(outcome.out), json.loads(fastervit(*args, "--data", whole, "--json").out)
    assert found["unreadable"] == 1
    same = ("top1", "top5", "loss", "ece", "images")
    assert [found[name] for name in same] == pytest.approx([expected[name] for name in same])
    first, total, report = outcome.err.splitlines()
    assert first.startswith("fastervit: error: bee/2.jpg: it does not decode")
    assert total == "fastervit: error: 1 of 12 images could not be read; they are in no figure"
    assert report == f"fastervit: report in {tmp_path / 'report'}"
    (told,) = json.loads((tmp_path / "report" / "evaluation.json").read_text())["about"]["unreadable"]
    assert told["name"] == "bee/2.jpg"
    says = ["1 of 12 images cannot be read", "max_unreadable=0.0", "bee/2.jpg"]
    fails(*args, "--data", data, "--max-unreadable", 0, "--out", tmp_path / "none", says=says)
    assert not (tmp_path / "none").exists()


# --- Other networks, more processes, wrong usage


def test_a_grayscale_network(figures, ants: Path, tmp_path: Path):
    told = {**INPUT, "size": [1, 64, 64], "mean": [0.5], "std": [0.25]}
    network = pocket(in_chans=1)
    gray = write_checkpoint(tmp_path / "g.safetensors", network, overrides={**OPTIONS, "in_chans": 1}, input=told)
    transform = transforms.Compose(
        [transforms.Grayscale(), prepare(resize=math.floor(64 / 0.9), crop=64, mean=[0.5], std=[0.25])]
    )
    agree(figures("--checkpoint", gray, "--data", ants), figures_by_hand(*logits_by_hand(network, ants, transform)))


def test_one_of_timms_networks_that_was_trained_here(fastervit: Run, figures, ants: Path, tmp_path: Path):
    run = tmp_path / "run"
    settings = ("--model", "resnet18", "--epochs", 1, "--batch-size", 6, "--img-size", 32, "--val-fraction", 0.3)
    outcome = fastervit("train", "--data", ants, "--out", run, *settings, "--lr", 1e-3, "--lr-batch", 6, *QUICK)
    assert outcome.code == 0, outcome.err
    (row,) = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    found = figures("--checkpoint", run)
    expected = {name: float(row[f"val_{name}"]) for name in ("top1", "top5", "loss", "ece", "images")}
    agree(found, expected)


def test_two_processes_count_each_image_once(figures, checkpoint: Path, ants: Path):
    expected = figures("--checkpoint", checkpoint, "--data", ants)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "openfastervit_cli", "evaluate", "--json", "--batch-size", "4"),
    ]
    done = subprocess.run(
        [*command, "--checkpoint", str(checkpoint), "--data", str(ants), *map(str, QUICK)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--checkpoint", "{checkpoint}"], ["--data is missing", "only the folder of a run tells its own"]),
        (["--checkpoint", "{checkpoint}", "--data", "nowhere"], ["no folder at nowhere", "check the path"]),
        (["--checkpoint", "nowhere.safetensors", "--data", "{ants}"], ["no checkpoint at nowhere.safetensors"]),
        (["--checkpoint", "{ants}", "--data", "{ants}"], ["a folder without best.safetensors"]),
        (["--checkpoint", "{checkpoint}", "--data", "{ants}", "--batch-size", "0"], ["--batch-size 0"]),
        (["--checkpoint", "{checkpoint}", "--data", "{ants}", "--workers", "-1"], ["--workers -1"]),
        (["--checkpoint", "{checkpoint}", "--data", "{ants}", "--crop-pct", "1.5"], ["--crop-pct 1.5"]),
        (["--checkpoint", "{checkpoint}", "--data", "{ants}", "--max-unreadable", "2"], ["--max-unreadable 2.0"]),
        (["--checkpoint", "{checkpoint}", "--data", "{ants}", "--img-size", "16"], ["img_size=16", "32"]),
        (["--checkpoint", "{checkpoint}", "--data", "{ants}", "--device", "gpu"], ["'gpu'", "cpu"]),
        (["--checkpoint", "{checkpoint}", "--data", "{ants}", "--model", "fastervit_2"], ["not a fastervit_2"]),
        (["--checkpoint", "{checkpoint}", "--data", "{ants}", "--classes", "none.txt"], ["no such file"]),
        (["--checkpoint", "{checkpoint}", "--data", "{ants}", "--out", "{checkpoint}"], ["is a file", "folder"]),
    ],
)
def test_errors_name_the_mend(fails, checkpoint: Path, ants: Path, args: list[str], says: list[str]):
    fails("evaluate", *(arg.format(checkpoint=checkpoint, ants=ants) for arg in args), says=says)


def test_foreign_classes_are_not_guessed(fails, checkpoint: Path, tmp_path: Path):
    data = write_images(tmp_path / "data", ["ant", "dog"])
    fails("evaluate", "--checkpoint", checkpoint, "--data", data, *QUICK, says=["'dog'", "--classes FILE"])
