"""Learning rates over time and depth, and what weight decay spares."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from openfastervit.training import optimisation
from openfastervit.training.optimisation import Schedule, create_optimizer, rate_factor
from openfastervit.training.recipe import LoopSettings
from tests.pocket import pocket


def rates(updates: int, **settings: Any) -> list[float]:
    """The rate of each update of a run."""
    options = LoopSettings(**settings)
    optimizer = create_optimizer(nn.Linear(2, 2), options, 4096)
    schedule = Schedule(optimizer, options, updates, 4096)
    return [schedule.set(update) for update in range(updates * options.total_epochs)]


def test_cosine_with_warmup_floor_and_cooldown() -> None:
    """The closed form, written out: the warm-up is part of the epochs, and the cosine does not start anew after it."""
    found = rates(7, epochs=10, cooldown_epochs=2, lr=5e-3, warmup_epochs=3, warmup_lr=1e-6, min_lr=5e-6)
    length, warmup = 7 * 10, 7 * 3
    expected = [1e-6 + (5e-3 - 1e-6) * t / warmup for t in range(warmup)]
    expected += [5e-6 + 0.5 * (5e-3 - 5e-6) * (1 + math.cos(math.pi * t / length)) for t in range(warmup, length)]
    expected += [5e-6] * 14
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[0] == pytest.approx(1e-6)
    assert max(found) < 5e-3


def test_without_warmup_the_first_rate_is_the_whole_one() -> None:
    found = rates(5, epochs=4, lr=1e-3)
    assert found == pytest.approx([0.5e-3 * (1 + math.cos(math.pi * t / 20)) for t in range(20)], rel=1e-12)


def test_warmup_of_part_of_an_epoch() -> None:
    found = rates(8, epochs=2, lr=1e-3, warmup_epochs=0.5, warmup_lr=0.0)
    assert found[:4] == pytest.approx([0, 0.25e-3, 0.5e-3, 0.75e-3])
    assert found[4] == pytest.approx(0.5e-3 * (1 + math.cos(math.pi * 4 / 16)))


def test_a_constant_schedule_is_constant() -> None:
    assert rates(3, epochs=2, cooldown_epochs=1, lr=2e-3, schedule="constant") == pytest.approx([2e-3] * 9)


def test_the_rate_is_a_function_of_the_update() -> None:
    """In any order: a resumed run sets it once and has it."""
    options = LoopSettings(epochs=5, warmup_epochs=1, lr=1e-3)
    optimizer = create_optimizer(nn.Linear(2, 2), options, 4096)
    schedule = Schedule(optimizer, options, 6, 4096)
    forward = [schedule.set(update) for update in range(30)]
    assert [schedule.set(update) for update in reversed(range(30))] == forward[::-1]


def test_rates_scale_with_the_batch_of_all_processes() -> None:
    options = LoopSettings(lr=5e-3, lr_batch=4096, warmup_lr=1e-6, min_lr=5e-6, warmup_epochs=1, epochs=2)
    assert rate_factor(options, 1024) == 1 / 4
    assert rate_factor(LoopSettings(lr_batch=4096, lr_scaling="sqrt"), 1024) == 1 / 2
    assert rate_factor(LoopSettings(lr_batch=None), 1024) == 1
    optimizer = create_optimizer(nn.Linear(2, 2), options, 1024)
    assert all(group["lr"] == pytest.approx(5e-3 / 4) for group in optimizer.param_groups)
    schedule = Schedule(optimizer, options, 10, 1024)
    assert schedule.set(0) == pytest.approx(1e-6 / 4)
    assert schedule.set(10**6) == pytest.approx(5e-6 / 4)


def test_layers_have_rates_that_fall_towards_the_input() -> None:
    network = pocket()
    options = LoopSettings(layer_decay=0.5, lr=1.0, lr_batch=None, epochs=4)
    optimizer = create_optimizer(network, options, 8)
    schedule = Schedule(optimizer, options, 10, 8)
    assert schedule.set(0) == 1.0  # of the layer next to the output
    names = {parameter: name for name, parameter in network.named_parameters()}
    rate = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(rate) == set(names.values())
    assert rate["head.fc.weight"] == 1.0
    stem = {value for name, value in rate.items() if name.startswith("stem.")}
    assert stem == {min(rate.values())}
    stages = [
        [value for name, value in rate.items() if name.startswith(f"stages.{i}.")] for i in range(len(network.stages))
    ]
    for shallow, deep in itertools.pairwise(stages):
        assert max(shallow) <= min(deep)
    assert max(stem) <= min(stages[0])
    # Each is a whole power of the decay, and none is left out.
    powers = sorted({round(-math.log2(value), 6) for value in rate.values()})
    assert powers == [float(i) for i in range(len(powers))]
    assert len(powers) > 4


@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_weight_decay_spares_vectors_and_tables(layer_decay: float | None) -> None:
    network = pocket()
    optimizer = create_optimizer(network, LoopSettings(weight_decay=0.05, layer_decay=layer_decay), 8)
    names = {parameter: name for name, parameter in network.named_parameters()}
    decay = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decay) == set(names.values())
    spared = set(network.no_weight_decay())
    for name, parameter in network.named_parameters():
        expected = 0.0 if parameter.ndim <= 1 or name in spared else 0.05
        assert decay[name] == expected, name
    assert decay["head.fc.weight"] == 0.05
    assert {name for name in decay if "norm" in name and decay[name]} == set()


def test_options_reach_the_optimizer_and_wrong_ones_are_named() -> None:
    optimizer = create_optimizer(nn.Linear(2, 2), LoopSettings(optimizer_options={"betas": [0.8, 0.9]}), 8)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert tuple(optimizer.param_groups[0]["betas"]) == (0.8, 0.9)
    with pytest.raises(ValueError, match=r"optimizer_options=\{'bettas': 1\}: .*bettas"):
        create_optimizer(nn.Linear(2, 2), LoopSettings(optimizer_options={"bettas": 1}), 8)


class OnGpu(nn.Module):
    """A network whose weights say that they are on a GPU."""

    def __init__(self, kind: str = "cuda") -> None:
        super().__init__()
        self.kind = kind

    def parameters(self, recurse: bool = True) -> Any:
        return iter([SimpleNamespace(device=torch.device(self.kind))])


@pytest.mark.parametrize(
    ("settings", "fuses"),
    [
        ({}, True),
        ({"optimizer": "sgd"}, True),
        ({"optimizer": "lamb"}, False),  # timm's own
        ({"precision": "bf16"}, True),
        ({"precision": "fp16"}, False),
        ({"sharding": "fsdp2"}, True),
        ({"sharding": "fsdp2", "optimizer": "sgd"}, False),
        ({"optimizer_options": {"fused": False}}, False),
        ({"optimizer_options": {"foreach": True}}, False),
        ({"optimizer_options": {"betas": [0.8, 0.9]}}, True),
    ],
    ids=str,
)
def test_steps_are_fused_on_gpus_where_the_optimizer_has_it(settings: dict[str, Any], fuses: bool) -> None:
    options = LoopSettings(**settings)
    assert optimisation._fuses(OnGpu(), options) == fuses
    assert not optimisation._fuses(OnGpu("cpu"), options)


def test_fused_steps_are_the_steps_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, which has them too: clipped and accumulated gradients, rates that change, groups of weights."""
    ends = []
    for fused in (False, True):
        monkeypatch.setattr(optimisation, "_fuses", lambda *_, fused=fused: fused)
        torch.manual_seed(0)
        network = pocket().to(memory_format=torch.channels_last)
        options = LoopSettings(layer_decay=0.7, lr=1e-3, lr_batch=None, epochs=2)
        optimizer = create_optimizer(network, options, 8)
        assert optimizer.defaults["fused"] == (True if fused else None)
        schedule = Schedule(optimizer, options, 2, 8)
        images = torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
        for update in range(3):
            schedule.set(update)
            for half in images.split(2):
                network(half).square().mean().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
        ends.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))
    assert (ends[0] - ends[1]).norm() < 1e-5 * ends[0].norm()
