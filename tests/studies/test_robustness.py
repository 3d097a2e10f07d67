"""Corruptions against their definitions, and the study from end to end."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import v2

import studies.robustness.__main__ as study
from openfastervit.inference import load_classifier
from studies.common.outcome import read_outcome
from studies.robustness.corruptions import STRENGTHS, corrupt
from tests.pocket import picture


def image(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.array(picture(seed, (128, 128)))).permute(2, 0, 1).contiguous()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one.float() - other.float()).abs().mean().item()


@pytest.mark.parametrize("kind", STRENGTHS)
def test_each_strength_changes_more_than_the_one_before_and_the_same_each_time(kind: str) -> None:
    clean = image()
    changes = [difference(corrupt(clean, kind, value, 7), clean) for value in STRENGTHS[kind]]
    assert len(changes) == 5
    assert changes[0] > 0
    assert changes == sorted(changes)
    for value in STRENGTHS[kind]:
        once = corrupt(clean, kind, value, 7)
        torch.rand(3)  # what else is drawn does not matter
        assert once.dtype == torch.uint8
        assert once.shape == clean.shape
        assert torch.equal(once, corrupt(clean, kind, value, 7))


def test_drawing_leaves_the_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    for kind in STRENGTHS:
        corrupt(image(), kind, STRENGTHS[kind][0], 3)
    assert torch.equal(torch.rand(2), expected)


def test_noise() -> None:
    grey = torch.full((3, 128, 128), 128, dtype=torch.uint8)
    for sigma in STRENGTHS["noise"][:3]:  # values stay within 0 and 255
        noise = corrupt(grey, "noise", sigma, 1).float() - 128
        assert noise.std().item() == pytest.approx(255 * sigma, rel=0.02)
        assert noise.mean().item() == pytest.approx(0, abs=1)
    assert not torch.equal(corrupt(grey, "noise", 0.1, 1), corrupt(grey, "noise", 0.1, 2))


@pytest.mark.parametrize("sigma", STRENGTHS["blur"])
def test_blur(sigma: float) -> None:
    """A point becomes a Gaussian."""
    point = torch.zeros(3, 33, 33, dtype=torch.uint8)
    point[:, 16, 16] = 255
    blurred = corrupt(point, "blur", sigma, 0)[0].float()
    y, x = torch.meshgrid(torch.arange(-16, 17), torch.arange(-16, 17), indexing="ij")
    expected = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    torch.testing.assert_close(blurred, 255 * expected / expected.sum(), rtol=0, atol=0.8)


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
@pytest.mark.parametrize("quality", STRENGTHS["jpeg"])
def test_jpeg_is_that_of_another_encoder(quality: int) -> None:
    expected = v2.functional.jpeg(image(), int(quality))
    assert difference(corrupt(image(), "jpeg", quality, 0), expected) < 0.5 < difference(image(), expected)


def test_contrast() -> None:
    clean = image().float()
    grey = (0.2989 * clean[0] + 0.587 * clean[1] + 0.114 * clean[2]).mean()
    expected = 0.3 * clean + 0.7 * grey
    assert difference(corrupt(image(), "contrast", 0.3, 0), expected) < 1


def test_shift() -> None:
    directions = set()
    for number in range(8):
        clean = torch.zeros(3, 128, 128, dtype=torch.uint8)
        clean[:, 64, 64] = 255
        moved = corrupt(clean, "shift", 24, number)
        y, x = (moved[0] == 255).nonzero()[0].tolist()
        assert math.hypot(y - 64, x - 64) == pytest.approx(24, abs=1)
        directions.add((y, x))
        uncovered = moved[:, moved[0] == round(255 * 0.485)]
        assert uncovered.shape[1] > 24 * 64
        assert moved[:, 64 + (64 - y) // 64, 64].sum() in (0, 3 * 255)
    assert len(directions) > 4


def test_an_unknown_corruption() -> None:
    with pytest.raises(ValueError, match="there is noise, blur"):
        corrupt(image(), "fog", 1, 0)


def test_the_study(photos: Path, tmp_path: Path) -> None:
    """Trained where there are no runs; the clean figures are those of the runs, the others those of a plain loop."""
    trained, again = tmp_path / "trained", tmp_path / "again"
    arguments = ["--scale", "smoke", "--data", str(photos), "--device", "cpu"]
    assert study.main([*arguments, "--out", str(trained), "--seeds", "0"]) == 0
    with (trained / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * (1 + 25 + 5)
    by_case = {(row["variant"], row["corruption"], row["strength"]): row for row in rows}
    for design in study.DESIGNS:
        outcome = read_outcome(trained / f"{design}-seed0")
        assert outcome is not None
        assert float(by_case[design, "none", "0"]["top1"]) == pytest.approx(outcome.top1[-1], abs=0.01)
        for kind in STRENGTHS:
            five = [float(by_case[design, kind, str(strength)]["top1"]) for strength in range(1, 6)]
            assert float(by_case[design, kind, "mean"]["top1"]) == pytest.approx(sum(five) / 5, abs=0.02)
    assert all(row["processor"] and row["revision"] and row["scale"] == "smoke" for row in rows)
    with Image.open(trained / "results.png") as plot:
        assert plot.width > 1000

    network, classes, preparation = load_classifier(trained / "hat-seed0" / "last.safetensors")
    transform = create_transform(**{**preparation, "mean": (0, 0, 0), "std": (1, 1, 1)})
    mean, std = (torch.tensor(preparation[name]).view(3, 1, 1) for name in ("mean", "std"))
    right = count = 0
    folders = sorted((trained / "few-images-4-2" / "val").iterdir())
    assert tuple(folder.name for folder in folders) == classes
    for label, folder in enumerate(folders):
        for path in sorted(folder.iterdir()):
            pixels = (255 * transform(Image.open(path).convert("RGB"))).round().byte()
            noisy = corrupt(pixels, "noise", STRENGTHS["noise"][2], count).float() / 255
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                right += int(network(((noisy - mean) / std)[None]).argmax()) == label
            count += 1
    assert float(by_case["hat", "noise", "3"]["top1"]) == pytest.approx(100 * right / count, abs=0.01)

    assert study.main([*arguments, "--out", str(again), "--runs", str(trained), "--only", "hat", "window"]) == 0
    with (again / "results.csv").open(newline="") as file:
        told = {(row["variant"], row["corruption"], row["strength"]): row["top1"] for row in csv.DictReader(file)}
    assert told == {key: row["top1"] for key, row in by_case.items() if key[0] != "global"}


def test_runs_that_are_not_there(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--scale", "smoke", "--data", str(photos), "--out", str(tmp_path), "--runs", str(tmp_path / "none")]
    assert study.main(arguments) == 2
    assert "has no run of hat" in capsys.readouterr().err
