from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from openfastervit.benchmarking.complexity import count_parameters, multiply_adds, summarise
from studies.imagenette.networks import FULL, OURS, POCKET, TOLERANCE, StudyNetwork, build

SCALES = {"full": FULL, "pocket": POCKET}
EVERY = [
    pytest.param(network, id=f"{scale}-{name}") for scale, table in SCALES.items() for name, network in table.items()
]
# Millions of parameters, so that a change of timm's networks or of ours does not pass unseen.
PARAMETERS = {
    "full": {"fastervit": 30.90, "resnet": 23.53, "swin": 24.18, "convnext": 23.41},
    "pocket": {"fastervit": 0.74, "resnet": 0.45, "swin": 0.73, "convnext": 0.67},
}


class ByShapes(TorchFunctionMode):
    """Counts multiply-adds from the shapes that torch's functions are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (F.conv2d, torch.conv2d):
            self.count += out.numel() * args[1][0].numel()
        elif func is F.linear:
            self.count += out.numel() * args[1].shape[1]
        elif func is F.scaled_dot_product_attention:
            queries, keys, values = args[:3]
            pairs = queries.shape[:-1].numel() * keys.shape[-2]
            self.count += pairs * (queries.shape[-1] + values.shape[-1])
        elif func in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm):
            self.count += out.numel() * args[0].shape[-1]
        return out


def on_meta(network: StudyNetwork) -> nn.Module:
    """The network without storage: fast to build, enough to count."""
    with torch.device("meta"):
        return build(network)


def counted(network: StudyNetwork) -> tuple[int, int]:
    """Multiply-adds of one image, counted from operators and from shapes."""
    model = build(network).eval()
    image = torch.zeros(1, 3, 128, 128)
    with torch.no_grad(), FlopCounterMode(display=False) as operators:
        model(image)
    with torch.no_grad(), ByShapes() as shapes:
        model(image)
    return operators.get_total_flops() // 2, shapes.count


@pytest.mark.parametrize("network", EVERY)
def test_the_ways_of_counting_agree(network: StudyNetwork):
    ours = multiply_adds(on_meta(network), 128, 128)
    assert (ours, ours) == counted(network)


@pytest.mark.parametrize("table", SCALES.values(), ids=list(SCALES))
def test_peers_cost_what_the_fastervit_costs(table: Mapping[str, StudyNetwork]):
    costs = {name: multiply_adds(on_meta(network), 128, 128) for name, network in table.items()}
    assert set(costs) == {OURS, "resnet", "swin", "convnext"}
    for cost in costs.values():
        assert abs(cost / costs[OURS] - 1) <= TOLERANCE, costs


def test_the_pocket_suits_a_cpu():
    assert 20e6 <= multiply_adds(on_meta(POCKET[OURS]), 128, 128) <= 60e6


@pytest.mark.parametrize("scale", SCALES)
def test_parameters(scale: str):
    told = {name: round(count_parameters(on_meta(network)) / 1e6, 2) for name, network in SCALES[scale].items()}
    assert told == PARAMETERS[scale]


@pytest.mark.parametrize("table", SCALES.values(), ids=list(SCALES))
def test_carriers_are_in_use(table: Mapping[str, StudyNetwork]):
    parts = {part.name: part for part in summarise(on_meta(table[OURS]), 128, 128).parts}
    assert parts["stage 2"].windows == (2, 2)
    assert parts["stage 2"].carriers == (4, 4)
    assert parts["stage 3"].windows == (1, 1)


@pytest.mark.parametrize("scale", SCALES)
def test_windows_need_no_padding(scale: str):
    for part in summarise(on_meta(SCALES[scale][OURS]), 128, 128).parts:
        if part.window and part.windows:
            assert part.shape[1:] == tuple(n * side for n, side in zip(part.windows, part.window, strict=True))


@pytest.mark.parametrize("network", [pytest.param(network, id=name) for name, network in POCKET.items()])
def test_every_parameter_learns(network: StudyNetwork):
    torch.manual_seed(0)
    model = build(network)
    logits = model(torch.randn(4, 3, 128, 128))
    assert logits.shape == (4, 10)
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def drop_path(model: nn.Module) -> float:
    return max((module.drop_prob for module in model.modules() if hasattr(module, "drop_prob")), default=0.0)


@pytest.mark.parametrize(("scale", "rate"), [("full", 0.1), ("pocket", 0.0)])
def test_all_get_the_same_drop_path(scale: str, rate: float):
    for network in SCALES[scale].values():
        assert drop_path(on_meta(network)) == pytest.approx(rate)


def test_more_options_are_passed_on():
    model = build(POCKET["convnext"], drop_path_rate=0.2, num_classes=3)
    assert model(torch.zeros(1, 3, 128, 128)).shape == (1, 3)
    assert drop_path(model) == pytest.approx(0.2)
