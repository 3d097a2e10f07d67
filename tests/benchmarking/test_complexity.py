import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import openfastervit
from openfastervit.benchmarking import multiply_adds, summarise
from tests.networks import GLOBAL, HAT, KINDS, SCALED, tiny


def on_meta(name: str) -> openfastervit.FasterViT:
    with torch.device("meta"):
        return openfastervit.create_model(name)


@pytest.mark.parametrize(("name", "expected"), [("fastervit_0", 3_492_325_376), ("fastervit_3", 18_707_990_528)])
def test_counts_of_the_released_networks(name: str, expected: int):
    assert multiply_adds(on_meta(name), 224, 224) == expected


def test_counts_are_exact():
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert multiply_adds(conv, 10, 12) == 3 * 8 * 9 * 120
    assert multiply_adds(conv, 10, 12, batch=4) == 4 * 3 * 8 * 9 * 120


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (97, 160), (224, 224)])
def test_the_meta_device_counts_what_is_computed(name: str, size: tuple[int, int]):
    model = tiny(name).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *size))
    assert multiply_adds(model, *size) == counter.get_total_flops() // 2


def test_a_peer_of_timm_is_counted():
    assert multiply_adds(timm.create_model("resnet18"), 224, 224) == 1_814_073_344


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_network_as_it_is(training: bool):
    model = tiny(HAT).train(training)
    before = copy.deepcopy(model.state_dict())
    multiply_adds(model, 64, 64)
    assert model.training is training
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_no_weights_are_copied(monkeypatch: pytest.MonkeyPatch):
    def refuse(self: torch.Tensor, memo: dict) -> torch.Tensor:
        raise AssertionError(f"a tensor of {tuple(self.shape)} is copied")

    model = tiny(HAT)
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", refuse)
    assert multiply_adds(model, 64, 64) > 0


def test_a_size_that_the_network_refuses_is_an_error():
    with pytest.raises(ValueError, match="at least 32"):
        multiply_adds(tiny(HAT), 16, 64)
    with pytest.raises(ValueError, match="at least 32"):
        summarise(tiny(HAT), 16, 64)


@pytest.mark.parametrize("name", KINDS)
def test_a_summary_adds_up(name: str):
    model = tiny(name).eval()
    summary = summarise(model, 97, 160)
    assert [part.name for part in summary.parts] == ["stem", "stage 0", "stage 1", "stage 2", "stage 3", "head"]
    assert sum(part.parameters for part in summary.parts) == summary.parameters
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.multiply_adds == multiply_adds(model, 97, 160)
    maps = model.forward_intermediates(torch.zeros(1, 3, 97, 160), intermediates_only=True)
    assert [part.shape for part in summary.parts[1:5]] == [tuple(x.shape[1:]) for x in maps]
    assert summary.parts[5].shape == (10,)


def test_a_summary_shows_windows_and_carriers():
    parts = summarise(tiny(SCALED), 224, 320).parts
    assert [part.blocks for part in parts] == [None, 1, 1, 2, 1, None]
    assert [part.window for part in parts] == [None, None, None, (7, 7), (7, 7), None]
    assert [part.windows for part in parts] == [None, None, None, (2, 3), (1, 2), None]
    assert [part.carriers for part in parts] == [None, None, None, (4, 6), None, None]


def test_a_map_of_one_window_has_no_carriers():
    assert summarise(tiny(HAT), 64, 64).parts[3].carriers is None
    assert summarise(tiny(GLOBAL), 224, 224).parts[3].windows == (1, 1)


def test_fitted_windows_are_shown():
    model = tiny(HAT)
    model.set_input_size((256, 320), windows="fit")
    stage = summarise(model, 256, 320).parts[3]
    assert stage.window == model.stages[2].attention.window_size != (7, 7)
    assert stage.window[0] * stage.windows[0] == 16
    assert stage.window[1] * stage.windows[1] == 20
