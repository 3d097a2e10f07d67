"""The study of resolution: its formula, and that it runs from end to end."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

import openfastervit
import studies.resolution.__main__ as study
from openfastervit import FasterViT
from openfastervit.benchmarking import multiply_adds
from openfastervit.benchmarking.measure import Plan
from openfastervit.inference.fold import fold
from studies.resolution import formula
from tests.networks import tiny


def network(name: str, kind: str, side: int) -> FasterViT:
    with torch.device("meta"):
        model = openfastervit.create_model(name, **study.network_options(kind, side))
    assert isinstance(model, FasterViT)
    return model


@pytest.mark.parametrize("kind", study.KINDS)
@pytest.mark.parametrize(("name", "side"), [("fastervit_0", 224), ("fastervit_0", 320), ("fastervit_4", 512)])
def test_the_formula_is_what_is_counted(name: str, kind: str, side: int) -> None:
    model = network(name, kind, side)
    counted = formula.counted(model, side, side)
    assert formula.network(model, side, side).multiply_adds == counted
    assert counted < multiply_adds(model, side, side), "positions are left out"


@pytest.mark.parametrize("kind", study.KINDS)
def test_biases_are_those_that_a_folded_network_keeps(kind: str) -> None:
    model = tiny(**study.network_options(kind, 256)).eval()
    kept = {name: buffer for name, buffer in fold(model, 256).named_buffers() if name.endswith("bias")}
    tokens_and_carriers = sum(4 * buffer.numel() for buffer in kept.values())
    assert formula.network(model, 256, 256).bias_bytes == tokens_and_carriers


def test_full_attention_grows_with_the_square_of_the_pixels() -> None:
    costs = {
        kind: [formula.network(network("fastervit_0", kind, side), side, side) for side in (896, 1792)]
        for kind in study.KINDS
    }
    small, large = (cost.attention for cost in costs["full"])
    assert large == 16 * small
    small, large = (cost.attention for cost in costs["windowed"])
    assert large == 4 * small
    small, large = (cost.attention for cost in costs["hierarchical"])
    assert 4 * small < large < 16 * small
    assert large < costs["full"][1].attention / 10


def test_it_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoke = study.SCALES["smoke"]
    options = {"dim": 8, "stem_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4)}
    quick = study.Scale((64, 160), 1, "fp32", Plan(repeats=2, seconds=0.01, tail=False), options)
    assert quick.plan.tail == smoke.plan.tail
    monkeypatch.setitem(study.SCALES, "smoke", quick)
    assert study.main(["--scale", "smoke", "--out", str(tmp_path), "--threads", "1"]) == 0
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["attention"], row["side"]) for row in rows] == [
        (kind, side) for side in ("64", "160") for kind in study.KINDS
    ]
    for row in rows:
        assert row["status"] == "ok"
        assert float(row["ms_per_image"]) == pytest.approx(1000 / float(row["images_per_second"]), rel=1e-3)
        assert row["multiply_adds"] == row["formula_multiply_adds"]
        assert row["processor"]
        assert row["torch"]
        assert row["command"] == "python -m studies.resolution --scale smoke --out OUT --threads 1"
    with Image.open(tmp_path / "results.png") as plot:
        assert plot.width > 800
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.png"]


def test_what_does_not_fit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with little memory, where full attention alone needs more: 1680 x 1680 pixels are 11,025 tokens."""
    options = {"dim": 8, "stem_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4)}
    plan = Plan(repeats=1, seconds=0.01, tail=False)
    monkeypatch.setitem(study.SCALES, "smoke", study.Scale((1680,), 1, "fp32", plan, options))
    monkeypatch.setattr(study, "available_bytes", lambda: 1_500_000_000)
    assert study.main(["--scale", "smoke", "--out", str(tmp_path), "--threads", "1"]) == 0
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = {row["attention"]: row for row in csv.DictReader(file)}
    assert rows["windowed"]["status"] == rows["hierarchical"]["status"] == "ok"
    assert rows["full"]["status"].startswith("out of memory: ")
    assert rows["full"]["ms_per_image"] == ""
    assert int(rows["full"]["multiply_adds"]) > 0
