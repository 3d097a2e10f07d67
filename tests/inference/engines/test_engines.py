"""Every engine that is installed against the network it was made from."""

import importlib.util

import pytest
import timm
import torch
from torch import nn

from openfastervit.inference.engines import ENGINES, Engine, EngineError, Settings, create_engine, installed_engines
from openfastervit.inference.engines.engine import MAX_DIFFERENCE, difference
from openfastervit.inference.fold import fold
from openfastervit.inference.openvino_core import openvino_core
from tests.inference.lively import lively
from tests.networks import GLOBAL, HAT, KINDS, SCALED, images, tiny

QUICK = [name for name in installed_engines() if not ENGINES[name].compiles and ENGINES[name].runs_on("cpu")]
COMPILING = [name for name in installed_engines() if ENGINES[name].compiles]


def plain(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(x)


def test_all_backends_are_here():
    """The tests below mean something only where the backends that development installs are there."""
    assert {"torch-eager", "torch-folded", "torch-compiled", "torch-packaged", "openvino", "onnxruntime"} <= set(
        installed_engines()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", QUICK)
def test_logits_are_the_networks(name, kind):
    network = lively(kind)
    engine = create_engine(network, name, Settings(size=(160, 96), batch_size=4))
    assert isinstance(engine, Engine)
    assert (engine.name, engine.precision) == (name, "fp32")
    for batch in (1, 3, 4, 9):
        x = images(160, 96, batch=batch)
        found = engine(x)
        assert found.dtype == torch.float32
        assert found.shape == (batch, 10)
        assert difference(found, plain(network, x)) < 1e-5
    engine.close()


@pytest.mark.parametrize("name", QUICK)
def test_attention_that_is_not_folded(name):
    options = {"carrier_levels": 2, "mask_padding": True, "attention": ("hat", "twins"), "window_sizes": (7, 7, 3, 7)}
    network = lively(depths=(1, 1, 1, 1), **options)
    engine = create_engine(network, name, Settings(size=(130, 96), batch_size=2))
    x = images(130, 96, batch=3)
    assert difference(engine(x), plain(network, x)) < 1e-5
    engine.close()


@pytest.mark.parametrize(("size", "batch_size"), [((64, 64), 3), ((130, 333), 1)])
@pytest.mark.parametrize("name", QUICK)
def test_sizes_and_batches(name, size, batch_size):
    """Windows of stage 3 have as many tokens as there are heads: OpenVINO has mistaken one axis for the other."""
    network = lively(SCALED if size == (64, 64) else HAT, depths=(1, 1, 1, 1), window_sizes=(7, 7, 7, 2))
    engine = create_engine(network, name, Settings(size=size, batch_size=batch_size))
    x = images(*size, batch=2)
    assert difference(engine(x), plain(network, x)) < 1e-5
    # What is laid out otherwise in memory is the same image.
    turned = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert difference(engine(turned), plain(network, x)) < 1e-5
    engine.close()


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp8"])
@pytest.mark.parametrize("name", QUICK)
def test_lower_precision_is_near(name, precision):
    if precision not in ENGINES[name].precisions:
        with pytest.raises(EngineError, match=r"has no precision.*fp32"):
            create_engine(tiny(), name, Settings(size=(96, 128), precision=precision))
        return
    network, x = tiny(GLOBAL, depths=(1, 1, 1, 1)), images(96, 128, batch=3)
    settings = Settings(size=(96, 128), precision=precision)
    if name == "openvino" and precision.upper() not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(EngineError, match=f"no {precision} arithmetic"):
            create_engine(network, name, settings)
        return
    engine = create_engine(network, name, settings)
    apart = difference(engine(x), plain(network, x))
    assert apart < MAX_DIFFERENCE[precision]
    assert apart > 1e-5, "the products are not of that precision"
    engine.close()


@pytest.mark.parametrize("name", QUICK)
def test_the_network_is_left_as_it_was(name):
    network = tiny(depths=(1, 1, 1, 1)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    engine = create_engine(network, name, Settings(size=(64, 64)))
    engine(images(64, 64))
    engine.close()
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("peer", ["convnext_atto", "fastvit_t8"])
@pytest.mark.parametrize("name", QUICK)
def test_networks_of_timms(name, peer):
    torch.manual_seed(0)
    network = timm.create_model(peer, num_classes=7).eval()
    x = images(96, 96, batch=3)
    engine = create_engine(network, name, Settings(size=(96, 96), batch_size=2))
    assert difference(engine(x), plain(network, x)) < 1e-4
    engine.close()


@pytest.mark.parametrize("name", QUICK)
def test_what_is_no_batch_is_named(name):
    engine = create_engine(tiny(depths=(1, 1, 1, 1)), name, Settings(size=(64, 96)))
    for wrong in (images(96, 64), images(64, 96, channels=1), images(64, 96)[0], images(64, 96)[:0]):
        with pytest.raises(ValueError, match=rf"{name}.*\(B, 3, 64, 96\), got \[{', '.join(map(str, wrong.shape))}\]"):
            engine(wrong)
    with pytest.raises(ValueError, match=r"floating point.*uint8"):
        engine((images(64, 96) * 255).to(torch.uint8))
    with pytest.raises(ValueError, match=r"floating point.*ndarray"):
        engine(images(64, 96).numpy())
    for value in (float("nan"), float("inf")):
        spoilt = images(64, 96)
        spoilt[1, 2, 3, 4] = value
        with pytest.raises(ValueError, match="NaN or infinity"):
            engine(spoilt)
    pixels = torch.zeros(1, 3, 64, 96)
    pixels[0, 0, 0, 0] = 255
    with pytest.raises(ValueError, match=r"go from 0 to 255.*not normalised"):
        engine(pixels)
    engine.close()
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine(images(64, 96))


def test_wrong_settings_are_named():
    for options, message in (
        ({"size": (0, 64)}, "size"),
        ({"precision": "fp4"}, r"precision='fp4'.*bf16"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"threads": 0}, "threads=0"),
    ):
        with pytest.raises(ValueError, match=message):
            Settings(**{"size": (64, 64), **options})
    with pytest.raises(EngineError, match=r"engine='tflite' is unknown.*torch-folded"):
        create_engine(tiny(), "tflite", Settings(size=(64, 64)))
    with pytest.raises(EngineError, match=r"'openvino' runs on cpu, not on 'cuda'"):
        create_engine(tiny(), "openvino", Settings(size=(64, 64), device="cuda"))
    with pytest.raises(ValueError, match="32"):
        create_engine(tiny(), "torch-folded", Settings(size=(31, 64)))


@pytest.mark.parametrize("name", [name for name, kind in ENGINES.items() if kind.modules])
def test_a_missing_backend_names_its_extra(name, monkeypatch):
    real = importlib.util.find_spec
    gone = ENGINES[name].modules[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda module, *rest: None if module == gone else real(module))
    assert name not in installed_engines()
    with pytest.raises(EngineError, match=rf"needs {gone}.*openfastervit\[{ENGINES[name].extra}\]"):
        create_engine(tiny(), name, Settings(size=(64, 64)))


@pytest.mark.parametrize("size", [(64, 64), (224, 160)])
@pytest.mark.parametrize("kind", KINDS)
def test_folded_networks_are_one_graph(kind, size):
    """What Inductor is given, without Inductor: one graph, no break."""
    network, x = lively(kind), images(*size)
    graph = torch.compile(fold(network, size), backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        assert difference(graph(x), plain(network, x)) < 1e-5


@pytest.mark.parametrize("name", COMPILING)
def test_compiled_engines(name):
    network = tiny(HAT, depths=(1, 1, 1, 1))
    engine = create_engine(network, name, Settings(size=(128, 128), batch_size=2))
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for batch in (1, 2, 5):
        x = images(128, 128, batch=batch)
        assert difference(engine(x), plain(network, x)) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled, "a batch was compiled anew"
    engine.close()
