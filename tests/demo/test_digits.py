import sys

import numpy as np
import pytest
import torch
from PIL import Image

from openfastervit.demo import digits
from openfastervit.demo.digits import HELD_OUT, load, prepare, shake
from openfastervit.demo.network import INPUT, METADATA, SIDE, build, describe
from openfastervit.inference import Predictor
from openfastervit.models import save_checkpoint


def test_held_out_digits_are_never_trained_on():
    found = load()
    assert len(found.scans) == len(found.labels) == 1797
    assert len(found.held_out) == HELD_OUT
    assert not set(found.training) & set(found.held_out)
    assert set(found.training) | set(found.held_out) == set(range(1797))


def test_split_is_stratified_and_always_the_same():
    first, second = load(), load()
    assert np.array_equal(first.held_out, second.held_out)
    everywhere = np.bincount(first.labels) / len(first.labels)
    for part in (first.training, first.held_out):
        counts = np.bincount(first.labels[part], minlength=10)
        assert np.abs(counts - everywhere * len(part)).max() <= 1


def test_no_scan_is_in_both_parts_under_two_numbers():
    found = load()
    training = {found.scans[i].tobytes() for i in found.training}
    assert not [i for i in found.held_out if found.scans[i].tobytes() in training]


def test_images_are_prepared_as_predict_prepares_their_files(tmp_path):
    found = load()
    save_checkpoint(build(), tmp_path / "model.safetensors", metadata=METADATA)
    predictor = Predictor.from_checkpoint(tmp_path / "model.safetensors", device="cpu")
    Image.fromarray(found.scans[7]).save(tmp_path / "7.png")
    pixels = predictor.preparation.load(tmp_path / "7.png")
    prepared = prepare(found.scans[7:8])
    assert prepared.shape == (1, *INPUT["size"])
    torch.testing.assert_close(predictor.preparation.normalised([pixels], torch.device("cpu")), prepared)


def test_shaken_digits_stay_what_they_are():
    images = prepare(load().scans[:64])
    torch.manual_seed(0)
    once, again = shake(images), shake(images)
    assert once.shape == images.shape
    assert not torch.equal(once, again)
    assert once.min() >= -1 - 1e-5
    assert once.max() <= images.max() + 1e-5
    ink = (images + 1).sum(dim=(1, 2, 3))
    assert ((once + 1).sum(dim=(1, 2, 3)) / ink).sub(1).abs().max() < 0.5  # scaled, but not lost over the edge


def test_what_comes_into_view_is_paper():
    ink = torch.ones(32, 1, SIDE, SIDE)
    shaken = shake(ink)
    assert shaken.min() == -1
    assert shaken[:, :, SIDE // 2, SIDE // 2].min() > 1 - 1e-5  # interpolating between ones rounds


def test_moving_is_not_beyond_what_is_said(monkeypatch):
    """All draws at their most: a dot in the middle moves by the shift, and by nothing else."""
    monkeypatch.setattr(digits.torch, "rand", lambda *size: torch.ones(size))
    dot = torch.full((1, 1, SIDE, SIDE), -1.0)
    dot[..., SIDE // 2 - 1 : SIDE // 2 + 1, SIDE // 2 - 1 : SIDE // 2 + 1] = 1
    moved = shake(dot)[0, 0] + 1
    row, column = (
        float((moved.sum(axis) * (torch.arange(SIDE) + 0.5)).sum() / moved.sum()) - SIDE / 2 for axis in (1, 0)
    )
    assert (row**2 + column**2) ** 0.5 == pytest.approx(digits.SHIFT * SIDE * 2**0.5, rel=0.2)


def test_hierarchical_attention_is_in_use():
    stages = describe(build().eval(), torch.zeros(1, *INPUT["size"]))
    assert stages[2].windows == (2, 2)
    assert stages[2].carriers == 16
    with pytest.raises(AssertionError, match="no stage uses carrier tokens"):
        describe(build(hierarchical=[False] * 4).eval(), torch.zeros(1, *INPUT["size"]))


def test_without_scikit_learn_the_message_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'openfastervit\[demo\]'"):
        load()
