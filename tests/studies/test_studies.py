"""The studies run from end to end at their smallest, and write what they promise."""

import csv
from pathlib import Path

import pytest
import yaml
from PIL import Image

import studies.imagenette.__main__ as imagenette
from studies import training_loop
from studies.imagenette.networks import POCKET, StudyNetwork
from studies.imagenette.runs import RunPlan

TINY = {
    "img_size": 64,
    "window_sizes": [7, 7, 2, 2],
    "dim": 8,
    "stem_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "drop_path_rate": 0.0,
}


@pytest.fixture
def tiny_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's own path, with networks and batches of a size for tests."""
    networks = {
        "fastervit": StudyNetwork("fastervit", "fastervit_0", TINY),
        "resnet": StudyNetwork("resnet", "resnet18", {"channels": [8, 8, 8, 8], "drop_path_rate": 0.0}),
    }
    smoke = imagenette.SCALES["smoke"]
    settings = {**smoke.settings, "img_size": [64], "batch_size": 16, "workers": 0}
    monkeypatch.setitem(imagenette.SCALES, "smoke", RunPlan(networks, smoke.recipe, settings))


def test_imagenette_trains_all_and_tells_of_each(photos: Path, tmp_path: Path, tiny_scale: None) -> None:
    arguments = ["--scale", "smoke", "--data", str(photos), "--out", str(tmp_path), "--seeds", "0", "1"]
    assert imagenette.main([*arguments, "--device", "cpu"]) == 0
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["network"], row["seed"]) for row in rows] == [
        ("fastervit", "0"),
        ("fastervit", "1"),
        ("resnet", "0"),
        ("resnet", "1"),
    ]
    for row in rows:
        with (tmp_path / f"{row['network']}-seed{row['seed']}" / "metrics.csv").open(newline="") as file:
            epochs = list(csv.DictReader(file))
        assert float(row["top1"]) == pytest.approx(float(epochs[-1]["val_top1"]), abs=0.01)
        assert int(row["epochs"]) == len(epochs) == 2
        assert row["processor"]
        assert row["torch"]
        assert row["command"].startswith("python -m studies.imagenette --scale smoke")
    assert Image.open(tmp_path / "results.png").size[0] > 500

    written = {path: path.read_bytes() for path in tmp_path.glob("*/last.safetensors")}
    assert imagenette.main([*arguments, "--device", "cpu"]) == 0, "what is done is not done again"
    assert written == {path: path.read_bytes() for path in tmp_path.glob("*/last.safetensors")}


def test_every_network_is_trained_by_the_same_recipe(photos: Path, tmp_path: Path, tiny_scale: None) -> None:
    assert imagenette.main(["--scale", "smoke", "--data", str(photos), "--out", str(tmp_path), "--seeds", "0"]) == 0
    recipes = [
        yaml.safe_load((tmp_path / f"{name}-seed0" / "recipe.yaml").read_text()) for name in ("fastervit", "resnet")
    ]
    differing = {key for key in recipes[0] if recipes[0][key] != recipes[1][key]}
    assert differing == {"model", "model_options"}


def test_the_pocket_recipe_trains_the_studys_network() -> None:
    recipe = yaml.safe_load(imagenette.SCALES["cpu"].recipe.read_text())
    options = {key: value for key, value in POCKET["fastervit"].options.items() if key != "drop_path_rate"}
    assert recipe["model_options"] == options


def test_training_loop_adds_a_row(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "tiny.yaml"
    options = {key: value for key, value in TINY.items() if key != "drop_path_rate"}
    recipe.write_text(yaml.safe_dump({"model": "fastervit_0", "model_options": options, "img_size": [64]}))
    out = tmp_path / "loop.csv"
    arguments = ["--recipe", str(recipe), "--data", str(photos), "--out", str(out), "--updates", "2"]
    for workers in ("0", "1"):
        assert training_loop.main([*arguments, "--workers", workers, "--batch-size", "8", "--device", "cpu"]) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["workers"] for row in rows] == ["0", "1"]
    for row in rows:
        assert 0 <= float(row["waiting"]) <= float(row["waiting_most"]) <= 1
        assert float(row["loop"]) > 0
        assert int(row["peak_bytes"]) > 2**20
    assert "waiting for data" in capsys.readouterr().out
