"""Equality with the released networks, in float64 and float32, training steps included."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from openfastervit.models.checkpoints import released_state_dict
from openfastervit.models.layouts import released_keys
from tests.conftest import shared_folder
from tests.parity.cases import FULL, TINY, TRAINED, Case

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4}


def difference(found: Tensor, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected value."""
    expected = expected.astype(np.float64)
    return float(np.abs(found.detach().double().numpy() - expected).max() / np.abs(expected).max())


def full_cases() -> list[object]:
    if FULL:
        return [pytest.param(case, id=case.name) for case in FULL]
    reason = f"the full-size reference cases are not at {shared_folder() / 'parity'}"
    return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", TINY, ids=str)
def test_tiny_outputs(case: Case, dtype: torch.dtype) -> None:
    model = case.model().to(dtype)
    x = case.images().to(dtype)
    with torch.no_grad():
        features, stages = model.forward_intermediates(x)
        assert difference(model(x), case.golden["logits"]) < TOLERANCE[dtype]
        assert difference(model.forward_head(features, pre_logits=True), case.golden["pooled"]) < TOLERANCE[dtype]
    for i, stage in enumerate(stages):
        # The stages are stored in float32, so no closer agreement can be seen.
        assert difference(stage[0, :4], case.golden[f"stage{i}"]) < max(TOLERANCE[dtype], 2e-7)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", full_cases())
def test_full_outputs(case: Case, dtype: torch.dtype) -> None:
    model = case.model().to(dtype)
    x = case.images().to(dtype)
    with torch.no_grad():
        features, stages = model.forward_intermediates(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert difference(model.forward_head(features), case.golden["logits"]) < TOLERANCE[dtype]
        assert difference(pooled, case.golden["pooled"]) < TOLERANCE[dtype]
    for i, stage in enumerate(stages):
        for statistic, value in (("mean", stage.mean((2, 3))), ("std", stage.std((2, 3)))):
            assert difference(value, case.golden[f"stage{i}_{statistic}"]) < max(TOLERANCE[dtype], 2e-7)


@pytest.mark.parametrize("case", TRAINED, ids=str)
def test_training_step(case: Case) -> None:
    model = case.model().double().train()
    labels = torch.as_tensor(case.golden["train_labels"]).long()
    loss = F.cross_entropy(model(case.images().double()), labels)
    loss.backward()
    expected = float(case.golden["train_loss"])
    assert abs(loss.item() - expected) < 1e-7 * abs(expected)
    norms = {
        key: parameter.grad.norm().item() for name, parameter in model.named_parameters() for key in released_keys(name)
    }
    expected_norms = dict(zip(case.golden["train_grad_keys"].tolist(), case.golden["train_grad_norms"], strict=True))
    for name, value in expected_norms.items():
        assert abs(norms[name] - float(value)) < 1e-6 * float(value) + 1e-9, name
    # Nothing of ours is left uncompared: the carrier initialiser has two names, of which one is enough.
    for name, _ in model.named_parameters():
        assert any(key in expected_norms for key in released_keys(name)), name


@pytest.mark.parametrize("case", [*TINY, *FULL], ids=str)
def test_counts(case: Case) -> None:
    with torch.device("meta"):
        model = case.empty().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == case.manifest["parameters"]
    _, height, width = case.manifest["input"]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, height, width, device="meta"))
    assert counter.get_total_flops() == 2 * case.manifest["macs"]


@pytest.mark.parametrize("case", TINY, ids=str)
def test_released_layout_round_trip(case: Case) -> None:
    """Released -> ours -> released is the identity on every parameter and every running statistic."""
    back = released_state_dict(case.model())
    kept = {key: value for key, value in case.weights.items() if not key.rsplit(".", 1)[-1].startswith("relative_")}
    assert back.keys() == kept.keys()
    for key, value in kept.items():
        assert torch.equal(back[key], value), key
