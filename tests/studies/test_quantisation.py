"""The study of accuracy on each engine, at its smallest: its figures are those of a plain loop over the images."""

import csv

import pytest
import torch
from timm.data.transforms_factory import create_transform
from torchvision.datasets import ImageFolder

from openfastervit.inference import load_classifier
from studies import quantisation
from tests.pocket import CLASSES, picture, write_checkpoint


@pytest.fixture
def data(tmp_path):
    for split, count in (("train", 3), ("val", 4)):
        for label, name in enumerate(CLASSES):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                picture(100 * label + number).save(tmp_path / "data" / split / name / f"{number}.png")
    write_checkpoint(tmp_path / "net.safetensors")
    return tmp_path


def test_figures(data):
    out = data / "results" / "quantisation.csv"
    arguments = ["--checkpoint", str(data / "net.safetensors"), "--data", str(data / "data"), "--out", str(out)]
    assert quantisation.main([*arguments, "--engines", "torch-folded", "--precisions", "fp32", "bf16", "fp8"]) == 0
    rows = list(csv.DictReader(out.open()))
    assert [(row["engine"], row["precision"]) for row in rows] == [
        ("torch-eager", "fp32"),
        ("torch-folded", "fp32"),
        ("torch-folded", "bf16"),
        ("torch-folded", "fp8"),
    ]
    network, _, preparation = load_classifier(data / "net.safetensors")
    images = ImageFolder(str(data / "data" / "val"), create_transform(**preparation, is_training=False))
    with torch.no_grad():
        right = [int(network(image[None]).argmax()) == label for image, label in images]
    for row in rows[:2]:
        assert float(row["top1"]) == pytest.approx(100 * sum(right) / len(right), abs=0.01)
        assert float(row["difference_points"]) == 0
        assert float(row["agreement"]) == 1
        assert int(row["images"]) == len(right) == 12
        assert row["processor"]
        assert row["torch"]
    write_checkpoint(data / "other.safetensors", classes=["x", "y", "z"])
    with pytest.raises(SystemExit, match="not the folders"):
        quantisation.main(["--checkpoint", str(data / "other.safetensors"), *arguments[2:]])
