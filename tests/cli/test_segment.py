"""``fastervit segment``, from a folder of pictures to maps of labels, by its command line alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from openfastervit.inference.dense import load_segmenter
from openfastervit.training.tables import read_table
from tests.cli.conftest import Run
from tests.shapes import BACKBONE, CLASSES, UPERNET, write_semantic

OPTIONS = [
    *("--model-options", json.dumps(BACKBONE), "--head-options", json.dumps(UPERNET), "--crop-size", "96"),
    *("--batch-size", "4", "--lr-batch", "4", "--lr", "0.003", "--workers", "0", "--device", "cpu"),
    *("--drop-path", "0", "--scale", "0.9", "1.1", "--color-jitter", "0", "--epochs", "4"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_semantic(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import openfastervit_cli

    out = tmp_path_factory.mktemp("runs") / "segmenter"
    assert openfastervit_cli.main(["segment", "train", "--data", str(data), "--out", str(out), *OPTIONS]) == 0
    return out


def test_a_run_leaves_what_runs_leave(trained: Path) -> None:
    columns, rows = read_table(trained / "metrics.csv")
    for name in ("val_miou", "val_pixel_accuracy", "train_loss_decode", "train_loss_auxiliary"):
        assert name in columns
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    with Image.open(trained / "augmented.png") as sheet:
        assert sheet.width > 96
    segmenter = load_segmenter(trained)
    assert segmenter.classes == ("ground", *CLASSES)
    assert segmenter.crop_size == (96, 96)


def test_figures_are_those_of_the_maps_that_are_predicted(
    fastervit: Run, trained: Path, data: Path, tmp_path: Path
) -> None:
    """Scored a second time, by scikit-learn, from the PNGs that ``predict`` writes."""
    common = ("--checkpoint", trained, "--device", "cpu")
    outcome = fastervit("segment", "evaluate", *common, "--data", data, "--workers", "0", "--json")
    assert outcome.code == 0, outcome.err
    figures = json.loads(outcome.out)
    maps = tmp_path / "maps"
    pictures = tmp_path / "pictures"
    outcome = fastervit(
        *("segment", "predict", data / "images" / "val", *common, "--out", maps, "--pictures", pictures)
    )
    assert outcome.code == 0, outcome.err
    truths, found = [], []
    for path in sorted((data / "labels" / "val").iterdir()):
        truth, guess = np.asarray(Image.open(path)), np.asarray(Image.open(maps / path.name))
        assert guess.shape == truth.shape
        truths.append(truth[truth != 255])
        found.append(guess[truth != 255])
        assert (pictures / path.name).is_file()
    truth, guess = np.concatenate(truths), np.concatenate(found)
    present = np.union1d(truth, guess)
    expected = jaccard_score(truth, guess, labels=present, average="macro")
    assert figures["miou"] == pytest.approx(expected, abs=1e-6)
    assert figures["pixel_accuracy"] == pytest.approx(float((truth == guess).mean()), abs=1e-6)


@pytest.mark.parametrize("options", [["--mode", "slide", "--crop-size", "64"], ["--flip", "--scales", "0.75", "1"]])
def test_other_ways_to_look(fastervit: Run, trained: Path, data: Path, tmp_path: Path, options: list[str]) -> None:
    outcome = fastervit(
        *("segment", "evaluate", "--checkpoint", trained, "--data", data, "--workers", "0", "--device", "cpu"),
        *("--out", tmp_path / "report", *options),
    )
    assert outcome.code == 0, outcome.err
    assert "miou" in outcome.out
    assert "ground" in outcome.out
    told = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert 0 <= told["miou"] <= 1
    assert (tmp_path / "report" / "confusion.csv").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train"], ["data is not given"]),
        (["train", "--data", "nowhere"], ["nowhere"]),
        (["train", "--data", "x", "--crop-size", "16"], ["crop_size=[16]"]),
        (["train", "--data", "x", "--scale", "2", "1"], ["scale=[2.0, 1.0]"]),
        (["train", "--data", "x", "--sharding", "fsdp2"], ["sharding=fsdp2", "classifiers"]),
        (["evaluate", "--checkpoint", "none.safetensors", "--data", "x"], ["none.safetensors"]),
    ],
)
def test_what_is_wrong_is_named(fastervit: Run, words: list[str], says: list[str]) -> None:
    outcome = fastervit("segment", *words)
    assert outcome.code == 1
    for part in says:
        assert part in outcome.err


def test_a_label_outside_the_classes_is_named(fastervit: Run, data: Path, tmp_path: Path) -> None:
    copy = write_semantic(tmp_path / "shapes", train=4, val=2)
    bad = sorted((copy / "labels" / "train").iterdir())[0]
    labels = np.array(Image.open(bad))
    labels[0, 0] = 7
    Image.fromarray(labels).save(bad)
    outcome = fastervit(
        *("segment", "train", "--data", copy, "--out", tmp_path / "run", *OPTIONS, "--max-unreadable", "0.9")
    )
    assert outcome.code == 0, outcome.err
    skipped = (tmp_path / "run" / "skipped.csv").read_text()
    assert bad.name in skipped
    assert "7" in skipped


def test_images_of_any_kind_and_size_are_segmented(fastervit: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    sizes = [(133, 71), (64, 200), (7, 40), (1, 1)]
    for number, (size, mode) in enumerate(zip(sizes, ("RGB", "L", "RGB", "L"), strict=True)):
        Image.new(mode, size, 90).save(tmp_path / "photos" / f"{number}.png")
    outcome = fastervit(
        *("segment", "predict", tmp_path / "photos", "--checkpoint", trained, "--out", tmp_path / "maps")
    )
    assert outcome.code == 0, outcome.err
    assert [Image.open(tmp_path / "maps" / f"{number}.png").size for number in range(4)] == sizes
