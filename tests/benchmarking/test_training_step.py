"""A classifier's step of training, measured: what it computes, whose it is, what its row says."""

import csv
import io
import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from openfastervit.benchmarking import training_step
from openfastervit.benchmarking.cases import to_csv
from openfastervit.benchmarking.measure import Plan, measure
from openfastervit.benchmarking.peers import build_network
from openfastervit.benchmarking.status import UnsupportedError, status_of
from openfastervit.benchmarking.subject import Machine
from openfastervit.benchmarking.training_step import (
    TRAINING_STEP_COLUMNS,
    VARIANTS,
    TrainingStepCase,
    TrainingStepRow,
    plan_training_steps,
)
from openfastervit.inference.engines import EngineError
from openfastervit.kernels import unavailable

POCKET = {"dim": 16, "stem_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4), "drop_path_rate": 0.0}
SIZE = (64, 96)
MACHINE = Machine(threads=1, warm_up_seconds=0.01)
INTERPRETED = pytest.mark.skipif(unavailable("cpu") is not None, reason="kernels do not run on this CPU")


def case(variant: str = "eager", model: str = "fastervit_0", **changes: Any) -> TrainingStepCase:
    peer = not model.startswith("fastervit")
    values: dict[str, Any] = {
        "architecture": model,
        "peer": peer,
        "precision": "fp32",
        "batch_size": 2,
        "height": SIZE[0],
        "width": SIZE[1],
        "options": {} if peer else POCKET,
    }
    return TrainingStepCase(model=model, variant=variant, **{**values, **changes})  # type: ignore[arg-type]


def learnt(one: TrainingStepCase, calls: int = 1) -> list[Tensor]:
    """The gradients that come to the optimiser, in the last call."""
    found: list[list[Tensor]] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])

    hook = register_optimizer_step_pre_hook(look)
    try:
        with one.open(MACHINE) as called:
            for _ in range(calls):
                called.call()
    finally:
        hook.remove()
    assert len(found) == calls, "a call is a step"
    return found[-1]


def expected(one: TrainingStepCase) -> list[Tensor]:
    """The same by hand: float64, log-softmax written out."""
    torch.manual_seed(training_step.SEED)
    network = build_network(one.architecture, one.size, peer=one.peer, options=one.options).double().train()
    images, labels = training_step._batch(network, one, torch.device("cpu"))
    logits = network(images.double())
    share = logits.exp() / logits.exp().sum(1, keepdim=True)
    (-share[torch.arange(len(labels)), labels].log().mean()).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    one, other = (torch.cat([each.double().flatten() for each in given]) for given in (found, wanted))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("model", ["fastervit_0", "test_convnext"])
def test_a_call_learns_from_its_images(model: str) -> None:
    one = case(model=model)
    assert apart(learnt(one), expected(one)) < 1e-4
    assert 1e-4 < apart(learnt(case(model=model, precision="bf16")), expected(one)) < 0.1


def test_every_step_is_like_the_first_one() -> None:
    """But for the statistics of batch norms, which training does not use."""
    assert apart(learnt(case(), calls=3), learnt(case())) < 1e-5


@INTERPRETED
def test_kernels_learn_the_same() -> None:
    one = case("kernels", batch_size=1)
    assert apart(learnt(one), expected(one)) < 1e-3
    with one.open(MACHINE) as called:
        assert called.facts()["kernel_stages"] == 2


@pytest.mark.parametrize("variant", ["compiled", "kernels-compiled"])
def test_what_is_compiled(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if variant != "compiled" and unavailable("cpu") is not None:
        pytest.skip("kernels do not run on this CPU")
    seen: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: seen.append(type(self).__name__))
    with case(variant).open(MACHINE), case("eager").open(MACHINE):
        assert seen == ["FasterViT"]


def test_what_cannot_be_measured_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    status = case("kernels", "test_resnet").unavailable() or ""
    assert status.startswith("unsupported: test_resnet is timm's")
    assert case("compiled", "test_resnet").unavailable() is None
    with (
        pytest.raises(UnsupportedError, match=r"no attention that kernels compute") as unsupported,
        case("kernels", options={**POCKET, "attention": ("twins", "twins")}).open(MACHINE),
    ):
        pass
    assert status_of(unsupported.value).startswith("unsupported: ")
    monkeypatch.setattr(training_step, "unavailable", lambda device: f"no chip in {device}")
    with pytest.raises(EngineError, match="kernels: no chip in cpu"), case("kernels").open(MACHINE):
        pass
    with (
        pytest.raises(UnsupportedError, match="32") as unsupported,
        case(height=31).open(MACHINE),
    ):
        pass
    assert status_of(unsupported.value).startswith("unsupported at this size: ")


def test_the_plan_leaves_kernels_out_for_peers() -> None:
    networks = [("fastervit_0", "fastervit_0", False), ("resnet50", "resnet50", True)]
    cases = plan_training_steps(networks, VARIANTS, ["fp32", "bf16"], [8, 128], [(224, 224)])
    assert len({one.key for one in cases}) == len(cases) == 2 * 2 * (4 + 2)
    assert {one.variant for one in cases if one.peer} == {"eager", "compiled"}
    assert len({one.kin for one in cases}) == 4
    assert [one.kin for one in cases] == sorted((one.kin for one in cases), key=[one.kin for one in cases].index)


def test_rows_of_processes() -> None:
    cases = [case(), case(model="test_resnet"), case("kernels", "test_resnet")]
    rows: dict[Any, TrainingStepRow] = {}
    for found in measure(cases, MACHINE, Plan(repeats=2, seconds=0.01, tail=False)):
        rows |= {row.key: row for row in found}
    assert [rows[one.key].status.partition(":")[0] for one in cases] == ["ok", "ok", "unsupported"]
    row = rows[cases[0].key]
    assert row.images_per_second is not None
    assert row.images_per_second > 0
    network = build_network("fastervit_0", SIZE, peer=False, options=POCKET)
    assert row.parameters_m == sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert (row.kernel_stages, row.repeats, row.peer) == (0, 2, False)
    (written,) = csv.DictReader(io.StringIO(to_csv([row], TRAINING_STEP_COLUMNS)))
    assert (written["model"], written["variant"], written["batch_size"]) == ("fastervit_0", "eager", "2")


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []
