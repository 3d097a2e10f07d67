"""Whole networks with attention by kernels, against the plain path."""

import copy
import io
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openfastervit import HierarchicalAttention
from openfastervit.layers import attention, use_kernels
from openfastervit.models import FasterViT
from tests.networks import DISTINCT, HAT, KINDS, SCALED, images, tiny


def gradients(model: FasterViT, x: Tensor) -> dict[str, Tensor]:
    F.cross_entropy(model(x), torch.arange(len(x))).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the kernel is launched from now on, as the list's length."""
    from openfastervit.kernels import window_attention as kernel

    launches: list[int] = []
    launch = kernel.launch

    def counting(*args: object, **kwargs: object) -> None:
        launches.append(1)
        launch(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel, "launch", counting)
    return launches


@pytest.mark.parametrize("name", DISTINCT)
@pytest.mark.parametrize("size", [(224, 224), (160, 288)])
def test_the_same_logits(name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """On one window, on several, and where the map is padded."""
    model = tiny(name).eval()
    with torch.no_grad():
        expected = model(images(*size))
        use_kernels(model)
        launches = counted(monkeypatch)
        found = model(images(*size))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    long = name.partition("_w")[2] not in ("", "14_224")  # their windows are too long for kernels
    assert bool(launches) or long


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_same_training_step(name: str, checkpointing: bool) -> None:
    """With the same draws of drop path: loss, gradients, running statistics."""
    results = []
    for enabled in (False, True):
        model = tiny(name, drop_path_rate=0.4).train()
        model.set_grad_checkpointing(checkpointing)
        use_kernels(model, enabled)
        torch.manual_seed(3)
        results.append(gradients(model, images(224, 224)))
    assert results[0].keys() == results[1].keys()
    for key, expected in results[0].items():
        torch.testing.assert_close(results[1][key], expected, rtol=2e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize(
    "options", [{"without": ["window_bias", "carrier_attention"]}, {"without": ["carrier_position"]}]
)
def test_parts_left_out(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    stage = HierarchicalAttention(32, 2, window_size=4, depth=2, propagate_carriers=True, layer_scale=0.5, **options)  # type: ignore[arg-type]
    x = torch.randn(2, 32, 12, 8)
    expected = stage(x)
    assert use_kernels(stage) == 1
    launches = counted(monkeypatch)
    torch.testing.assert_close(stage(x), expected, rtol=1e-4, atol=1e-5)
    assert launches


@pytest.mark.parametrize("options", [{"carrier_levels": 2}, {"mask_padding": True}])
def test_what_kernels_do_not_take_goes_the_plain_path(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = HierarchicalAttention(32, 2, window_size=4, **options)  # type: ignore[arg-type]
    x = torch.randn(1, 32, 15, 15)
    expected = stage(x)
    use_kernels(stage)
    launches = counted(monkeypatch)
    assert torch.equal(stage(x), expected)
    double = stage.double()
    torch.testing.assert_close(double(x.double()).float(), expected, rtol=1e-4, atol=1e-5)
    assert not launches


def test_autocast() -> None:
    model = tiny(SCALED).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(images(224, 224)).float()
        use_kernels(model)
        found = model(images(224, 224)).float()
    assert float((found - expected).norm() / expected.norm()) < 0.03


@pytest.mark.parametrize("name", [HAT, SCALED])
def test_compiles_as_one_graph(name: str) -> None:
    torch._dynamo.reset()
    results = []
    for wrap in (False, True):
        model = tiny(name).train()
        use_kernels(model)
        network = torch.compile(model, backend="aot_eager", fullgraph=True) if wrap else model
        F.cross_entropy(network(images(224, 224)), torch.tensor([1, 2])).backward()
        results.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, expected in results[0].items():
        torch.testing.assert_close(results[1][key], expected, rtol=1e-3, atol=1e-5, msg=key)


def test_other_forms_of_the_network_are_plain() -> None:
    """TorchScript and exported programs, and copies, which keep the choice."""
    model = tiny().eval()
    x = images(224, 224)
    with torch.no_grad():
        expected = model(x)
        use_kernels(model)
        assert all(
            stage.kernels for stage in copy.deepcopy(model).modules() if isinstance(stage, HierarchicalAttention)
        )
        torch.testing.assert_close(torch.jit.script(model)(x), expected, rtol=1e-4, atol=1e-5)
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-5)
    assert "window_attention" not in str(program.graph)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    assert not any("kernels" in key for key in model.state_dict())


def test_one_line_where_kernels_are_missing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    attention._has_kernels.cache_clear()
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    model = tiny().eval()
    x = images(224, 224)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        expected = model(x)
        assert use_kernels(model) == 2
        for _ in range(3):
            assert torch.equal(model(x), expected)
    attention._has_kernels.cache_clear()
    (line,) = caplog.messages
    assert line.startswith("attention without kernels: ")


def test_switching_back() -> None:
    model = tiny()
    assert use_kernels(model) == 2
    assert use_kernels(model, False) == 2
    assert not any(stage.kernels for stage in model.modules() if isinstance(stage, HierarchicalAttention))
