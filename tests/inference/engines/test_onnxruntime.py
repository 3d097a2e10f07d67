"""ONNX Runtime: graphs of any size, networks of timm's, int8, and what it refuses."""

from typing import Any

import onnx_ir
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn

from openfastervit.inference.engines import EngineError, Settings, create_engine
from openfastervit.inference.engines.engine import deployable
from openfastervit.inference.engines.onnxruntime import OnnxRuntimeEngine
from openfastervit.inference.graphs import GraphError, to_onnx
from openfastervit.inference.quantise_onnx import quantise_onnx
from tests.inference.lively import difference, lively
from tests.networks import KINDS, SCALED, images
from tests.pocket import OPTIONS

ONE_WINDOW = (65, 40)
"""Of a stage with carriers, where other sizes have several."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@torch.no_grad()
def plain(network: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = network(x)
    return logits


def test_one_size() -> None:
    """With heads of 49 channels; ``test_engines`` has the other kinds of networks."""
    network = lively(SCALED, dim=49, num_heads=(1, 1, 4, 8), depths=(1, 1, 1, 1))
    engine = create_engine(network, "onnxruntime", Settings((100, 160)))
    assert (engine.name, engine.precision, engine.device.type) == ("onnxruntime", "fp32", "cpu")
    for batch in (1, 3):
        x = images(100, 160, batch=batch)
        assert difference(engine(x), plain(network, x)) < 1e-5
    assert difference(engine(x.double()), plain(network, x)) < 1e-5
    assert difference(engine(x.to(memory_format=torch.channels_last)), plain(network, x)) < 1e-5
    engine.close()


@pytest.mark.slow  # test_export has one such graph
@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in KINDS), (SCALED, {"carrier_pooling": "aligned"})]
)
def test_any_size(name: str, options: dict[str, Any]) -> None:
    """One graph: whole windows, padded ones, oblong, and a single one, where the network has no carriers."""
    network = lively(name, depths=(1, 1, 1, 1), **options)
    model = onnx_ir.to_proto(to_onnx(deployable(network, None), None))
    axes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in model.graph.input
    ]
    assert axes == [["batch", 3, "height", "width"]]
    engine = OnnxRuntimeEngine(model.SerializeToString())
    for size in ((224, 224), (100, 160), ONE_WINDOW, (33, 33), (113, 64), (64, 257)):
        for batch in (1, 3):
            x = images(*size, batch=batch)
            assert difference(engine(x), plain(network, x)) < 1e-5, (size, batch)


PEERS: list[tuple[str, dict[str, Any]]] = [
    ("resnet10t", {}),
    ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}),
    ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}),
    ("twins_svt_small", {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)}),
]


@pytest.mark.slow  # test_engines and test_export have networks of convolutions
@pytest.mark.parametrize(("name", "options"), PEERS)
def test_timms_networks(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=7, **options).eval()
    engine = create_engine(network, "onnxruntime", Settings((224, 224)))
    x = images(224, 224)
    assert difference(engine(x), plain(network, x)) < 1e-5


def test_int8() -> None:
    network = lively(**OPTIONS)
    calibration = images(64, 96, batch=32)
    engine = create_engine(network, "onnxruntime", Settings((64, 96), "int8", calibration=calibration))
    x = images(64, 96, batch=16, seed=5)
    distance = (engine(x).softmax(-1) - plain(network, x).softmax(-1)).abs().sum(-1).mean() / 2
    assert 0 < distance < 0.05
    with pytest.raises(EngineError, match="needs calibration images for int8"):
        create_engine(network, "onnxruntime", Settings((64, 96), "int8"))
    with pytest.raises(ValueError, match="3 calibration images are too few; give at least 8"):
        create_engine(network, "onnxruntime", Settings((64, 96), "int8", calibration=calibration[:3]))


@pytest.mark.slow
def test_int8_keeps_what_loses_too_much() -> None:
    """Fewer layers are quantised for a smaller loss, and the loss is smaller; where none is, it says so."""
    network = lively(depths=(1, 1, 1, 1), dim=8)
    calibration = images(64, 64, batch=16)
    model = onnx_ir.to_proto(to_onnx(deployable(network, (64, 64)), (64, 64)))
    before = model.SerializeToString()
    expected = plain(network, calibration).softmax(-1)

    def quantised(max_loss: float) -> tuple[int, float]:
        made = quantise_onnx(model, calibration, max_loss=max_loss)
        found = OnnxRuntimeEngine(made.SerializeToString())(calibration).softmax(-1)
        count = sum(node.op_type == "QuantizeLinear" for node in made.graph.node)
        return count, float((found - expected).abs().sum(-1).mean() / 2)

    count, lost = quantised(1.0)
    fewer, less = quantised(lost / 3)
    assert 0 < fewer < count
    assert less < lost / 2
    with pytest.raises(ValueError, match="whatever layers stay in float; choose fp16"):
        quantise_onnx(model, calibration, max_loss=0.0)
    assert model.SerializeToString() == before


def test_refusals() -> None:
    network = lively(depths=(1, 1, 1, 1))
    engine = create_engine(network, "onnxruntime", Settings((64, 96)))
    with pytest.raises(ValueError, match=r"onnxruntime: expected images \(B, 3, 64, 96\), got \[1, 3, 96, 64\]"):
        engine(images(96, 64, batch=1))
    with pytest.raises(ValueError, match=r"got \[0, 3, 64, 96\]"):
        engine(torch.zeros(0, 3, 64, 96))
    with pytest.raises(ValueError, match=r"normalised, not torch\.int64"):
        engine(torch.zeros(1, 3, 64, 96, dtype=torch.int64))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine(images(64, 96))
    with pytest.raises(EngineError, match="has no precision 'bf16'"):
        create_engine(network, "onnxruntime", Settings((64, 96), "bf16"))


def test_a_device_it_does_not_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match="install onnxruntime-gpu"):
        OnnxRuntimeEngine(b"", device="cuda")


def test_what_is_no_model() -> None:
    with pytest.raises(EngineError, match="does not take this model"):
        OnnxRuntimeEngine(b"no model")


class _Sized(nn.Module):
    """With a size in its operations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(-1, 4 * 62 * 62)[:, :7]


class _Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(self.conv(x)[:, 0]).real


def test_networks_without_a_graph() -> None:
    with pytest.raises(GraphError, match="_Sized has no graph with open batch, height and width"):
        to_onnx(_Sized(), None)
    with pytest.raises(GraphError, match=r"_Foreign has no ONNX graph.*use an engine of torch"):
        to_onnx(_Foreign(), (32, 32))
    for options, kind in (
        ({"mask_padding": True}, "HierarchicalAttention with mask_padding=True"),
        ({"attention": "twins"}, "TwinsAttention"),
    ):
        with pytest.raises(GraphError, match=f"{kind} has no graph of open size; give the images' size"):
            to_onnx(deployable(lively(**options), None), None)
