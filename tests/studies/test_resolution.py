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
from studies.resolution.designs import DESIGNS, FOLDED, FORMULA, network_options
from studies.resolution.fit import crossover, exponent, fits
from studies.resolution.judge import judge
from tests.networks import tiny


def network(name: str, kind: str, side: int) -> FasterViT:
    with torch.device("meta"):
        model = openfastervit.create_model(name, **network_options(kind, side))
    assert isinstance(model, FasterViT)
    return model


@pytest.mark.parametrize("kind", FORMULA)
@pytest.mark.parametrize(("name", "side"), [("fastervit_0", 224), ("fastervit_0", 320), ("fastervit_4", 512)])
def test_the_formula_is_what_is_counted(name: str, kind: str, side: int) -> None:
    model = network(name, kind, side)
    counted = formula.counted(model, side, side)
    assert formula.network(model, side, side).multiply_adds == counted
    assert counted < multiply_adds(model, side, side), "positions are left out"


@pytest.mark.parametrize("kind", FORMULA)
def test_biases_are_those_that_a_folded_network_keeps(kind: str) -> None:
    model = tiny(**network_options(kind, 256)).eval()
    kept = {name: buffer for name, buffer in fold(model, 256).named_buffers() if name.endswith("bias")}
    tokens_and_carriers = sum(4 * buffer.numel() for buffer in kept.values())
    assert formula.network(model, 256, 256).bias_bytes == tokens_and_carriers


def test_full_attention_grows_with_the_square_of_the_pixels() -> None:
    costs = {
        kind: [formula.network(network("fastervit_0", kind, side), side, side) for side in (896, 1792)]
        for kind in FORMULA
    }
    small, large = (cost.attention for cost in costs["global"])
    assert large == 16 * small
    small, large = (cost.attention for cost in costs["window"])
    assert large == 4 * small
    small, large = (cost.attention for cost in costs["hat"])
    assert 4 * small < large < 16 * small
    assert large < costs["global"][1].attention / 10


def test_it_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoke = study.SCALES["smoke"]
    options = {"dim": 8, "stem_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4)}
    quick = study.Scale((64,), 1, "fp32", Plan(repeats=2, seconds=0.01, tail=False), (320,), options)
    assert quick.plan.tail == smoke.plan.tail
    monkeypatch.setitem(study.SCALES, "smoke", quick)
    assert study.main(["--scale", "smoke", "--out", str(tmp_path), "--threads", "1"]) == 0
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [
        (design, "64", engine)
        for engine, designs in (("torch-folded", FOLDED), ("torch-eager", tuple(DESIGNS)))
        for design in designs
    ]
    expected += [(design, "320", "") for design in DESIGNS]
    assert [(row["attention"], row["side"], row["engine"]) for row in rows] == expected
    for row in rows:
        assert row["status"] == ("ok" if row["engine"] else "counted")
        if row["engine"]:
            assert float(row["ms_per_image"]) == pytest.approx(1000 / float(row["images_per_second"]), rel=1e-3)
        if row["attention"] in FORMULA:
            assert row["multiply_adds"] == row["formula_multiply_adds"]
        assert row["processor"]
        assert row["torch"]
        assert row["scale"] == "smoke"
        assert row["command"] == "python -m studies.resolution --scale smoke --out OUT --threads 1"
    with Image.open(tmp_path / "results.png") as plot:
        assert plot.width > 800
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fits.csv", "results.csv", "results.png"]
    before = (tmp_path / "results.csv").read_bytes()
    monkeypatch.setattr(study, "measure", None)  # what was measured is not measured again
    assert study.main(["--scale", "smoke", "--out", str(tmp_path), "--threads", "1"]) == 0
    assert (tmp_path / "results.csv").read_bytes() == before


def test_what_does_not_fit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with little memory, where full attention alone needs more: 1680 x 1680 pixels are 11,025 tokens."""
    options = {"dim": 8, "stem_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4)}
    plan = Plan(repeats=1, seconds=0.01, tail=False)
    monkeypatch.setitem(study.SCALES, "smoke", study.Scale((1680,), 1, "fp32", plan, (), options))
    monkeypatch.setattr(study, "ENGINES", {"torch-folded": FOLDED})
    monkeypatch.setattr(study, "available_bytes", lambda: 1_500_000_000)
    assert study.main(["--scale", "smoke", "--out", str(tmp_path), "--threads", "1"]) == 0
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = {row["attention"]: row for row in csv.DictReader(file)}
    assert rows["window"]["status"] == rows["hat"]["status"] == "ok"
    assert rows["global"]["status"].startswith("out of memory: ")
    assert rows["global"]["ms_per_image"] == ""
    assert int(rows["global"]["multiply_adds"]) > 0


def test_exponents_and_crossovers_of_known_costs() -> None:
    """Costs that follow powers: the exponents come out, and the side where they meet."""
    sides = (448, 896, 1344, 2048)
    assert exponent([side**2 for side in sides], [3e-6 * side**2.6 for side in sides]) == pytest.approx(1.3)
    assert exponent([1.0, 2.0], [1.0, 2.0]) is None
    linear, square = {side: 1000.0 * side**2 for side in sides}, {side: side**4.0 / 1000 for side in sides}
    assert crossover(linear, square) == pytest.approx(1000)
    assert crossover(square, linear) is None, "dearer at the largest side"
    assert crossover(linear, {side: 2 * cost for side, cost in linear.items()}) is None, "cheaper from the start"
    assert crossover({}, square) is None
    lines = [
        {
            "engine": "e",
            "attention": design,
            "side": side,
            "ms_per_image": cost[side],
            "memory_mb": "",
            "multiply_adds": side**2,
        }
        for side in sides
        for design, cost in (("hat", linear), ("global", square))
    ]
    ours, theirs = fits(lines)
    assert (ours["exponent_of_time"], theirs["exponent_of_time"]) == ("1.000", "2.000")
    assert (ours["hat_faster_from_side"], theirs["hat_faster_from_side"]) == ("", "1000")
    assert ours["exponent_of_memory"] == ""
    dearer = [{**line, "ms_per_image": 2 * linear[line["side"]]} for line in lines if line["attention"] == "global"]
    assert fits([*lines[::2], *dearer])[1]["hat_faster_from_side"] == "<=448"


def test_two_levels_of_carriers_cost_less_as_images_grow() -> None:
    """At sides that the windows divide: padding, whose share falls as images grow, would hide how costs do."""
    with torch.device("meta"):
        costs = {
            design: [
                formula.counted(openfastervit.create_model("fastervit_0", **network_options(design, side)), side, side)
                for side in (896, 3584)
            ]
            for design in ("hat", "hat-2-levels", "global")
        }
    growth = {design: large / small for design, (small, large) in costs.items()}
    assert growth["hat-2-levels"] == pytest.approx(16, rel=0.01)
    assert 16.2 < growth["hat"] < 20
    assert growth["global"] > 100


def test_networks_are_judged_at_other_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that already have the size are only normalised: what the network says of them is counted by hand."""
    monkeypatch.setattr("studies.resolution.judge.SIDES", (64, 96))
    monkeypatch.setattr("studies.resolution.judge.EVERY", 1)
    model = tiny(num_classes=2).eval()
    for seed in (0, 1):
        metadata = {"classes": ["cat", "dog"], "input": {"size": [3, 64, 64]}}
        openfastervit.save_checkpoint(model, tmp_path / f"runs/hat-seed{seed}/last.safetensors", metadata=metadata)
    pixels = torch.randint(0, 256, (6, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = [0, 0, 0, 1, 1, 1]
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = tmp_path / "val" / ("cat", "dog")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(folder / f"{number}.png")
    table = judge(tmp_path / "runs", tmp_path / "val", tmp_path, {"processor": "one"}, smoke=False)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["attention"], row["seed"], row["side"], row["images"]) for row in rows] == [
        ("hat", seed, side, "6") for seed in "01" for side in ("64", "96")
    ]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        said = model(((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)).argmax(1).tolist()
    right = sum(one == other for one, other in zip(said, labels, strict=True))
    assert rows[0]["top1"] == f"{100 * right / 6:.2f}"
    with pytest.raises(ValueError, match="no run in it has a last"):
        judge(tmp_path / "val", tmp_path / "val", tmp_path, {}, smoke=True)
