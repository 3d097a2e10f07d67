"""PyTorch's engines: from graphs, with kernels, in FP8; where there is no GPU, with captures that are made up."""

import pytest
import timm
import torch

from openfastervit.inference import cuda_graphs
from openfastervit.inference import kernel_network as kernel_networks
from openfastervit.inference.engines import EngineError, Settings, create_engine
from openfastervit.inference.engines import torch as torch_engines
from openfastervit.inference.engines.auto import candidates
from openfastervit.inference.engines.engine import MAX_DIFFERENCE, deployable, difference
from openfastervit.inference.float8 import Float8Linear
from openfastervit.inference.fused import FusedLinear
from openfastervit.kernels import unavailable
from tests.inference.lively import lively
from tests.inference.test_cuda_graphs import Captures
from tests.networks import images, tiny

SIZE = (64, 96)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA's")


@pytest.fixture
def network():
    return lively(depths=(1, 1, 1, 1))


@pytest.fixture
def captures(monkeypatch):
    made = Captures()
    monkeypatch.setattr(cuda_graphs, "CudaCapture", lambda device: made)
    return made


def plain(network, x):
    with torch.no_grad():
        return network(x)


@pytest.mark.parametrize("fixed_batch", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_an_engine_of_graphs(network, captures, precision, fixed_batch):
    settings = Settings(size=SIZE, precision=precision, batch_size=2)
    folded = torch_engines._placed(deployable(network, SIZE), settings)
    engine = torch_engines._from_graphs("torch-graphed", folded, settings, 3, fixed_batch=fixed_batch)
    assert captures.made == [(2, 3, *SIZE)], "the batch it is built for is captured at once"
    answers = {batch: engine(images(*SIZE, batch=batch)) for batch in (1, 2, 5)}
    for batch, found in answers.items():
        assert found.dtype == torch.float32
        assert found.shape == (batch, 10)
        expected = plain(network, images(*SIZE, batch=batch))
        assert difference(found, expected) < (1e-5 if precision == "fp32" else MAX_DIFFERENCE[precision])
    assert len(captures.made) == (1 if fixed_batch else 3)
    engine.close()
    engine.close()
    assert captures.open == 0
    with pytest.raises(EngineError, match="closed"):
        engine(images(*SIZE))


def test_graphs_need_a_gpu(network):
    with pytest.raises(EngineError, match="'torch-graphed' runs on cuda, not on 'cpu'"):
        create_engine(network, "torch-graphed", Settings(size=SIZE))
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match=r"'torch-graphed' .* none that torch sees here; choose torch-folded"):
            create_engine(network, "torch-graphed", Settings(size=SIZE, device="cuda"))


def test_kernels_say_what_they_lack(network, monkeypatch):
    monkeypatch.setattr(torch_engines, "unavailable", lambda device: f"no chip in {device}; buy one")
    with pytest.raises(EngineError, match="'torch-kernels' is not to be had: no chip in cuda; buy one"):
        create_engine(network, "torch-kernels", Settings(size=SIZE, device="cuda"))
    monkeypatch.setattr(torch_engines, "unavailable", lambda device: None)
    with pytest.raises(EngineError, match="runs a FasterViT, this is a ResNet; choose torch-graphed"):
        create_engine(timm.create_model("test_resnet"), "torch-kernels", Settings(size=SIZE, device="cuda"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_kernels_are_put_into_the_folded_network(network, monkeypatch, precision):
    if unavailable("cpu") is not None:
        pytest.skip("kernels do not run on this CPU")
    given = []

    def with_kernels(folded):
        given.append((type(folded).__name__, {parameter.dtype for parameter in folded.parameters()}))
        return kernel_network(folded)

    kernel_network = kernel_networks.with_kernels
    monkeypatch.setattr(kernel_networks, "with_kernels", with_kernels)
    engine = torch_engines.kernels(network, Settings(size=SIZE, precision=precision))
    assert given == [("FoldedFasterViT", {torch.float32})]
    assert any(isinstance(module, Float8Linear) for module in engine._call.modules()) == (precision == "fp8")
    x = images(*SIZE, batch=1)
    assert difference(engine(x), plain(network, x)) < (1e-5 if precision == "fp32" else MAX_DIFFERENCE[precision])


def test_fp8_where_it_is_emulated_and_where_not(network, monkeypatch):
    settings = Settings(size=SIZE, precision="fp8")
    engine = create_engine(network, "torch-folded", settings)
    kinds = [type(module) for module in engine._call.modules()]
    assert Float8Linear in kinds
    x = images(*SIZE, batch=3)
    assert 1e-3 < difference(engine(x), plain(network, x)) < MAX_DIFFERENCE["fp8"]
    for name in ("torch-eager", "torch-packaged"):
        with pytest.raises(EngineError, match=f"'{name}' has no precision 'fp8'"):
            create_engine(network, name, settings)
    with pytest.raises(EngineError, match="'torch-compiled' has precision 'fp8' on cuda alone, not on 'cpu'"):
        create_engine(network, "torch-compiled", settings)
    with pytest.raises(EngineError, match=r"ResNet has no linear layer for FP8.*choose bf16"):
        create_engine(timm.create_model("test_resnet"), "torch-folded", settings)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args, **options: self)
    monkeypatch.setattr(torch_engines.float8, "unavailable", lambda device: "an old chip")
    with pytest.raises(EngineError, match="an old chip; choose bf16"):
        create_engine(network, "torch-folded", Settings(size=SIZE, precision="fp8", device="cuda"))


def test_what_auto_measures():
    def named(**options):
        return [name for name in candidates(Settings(size=SIZE, **options)) if name.startswith("torch")]

    for precision in ("fp32", "bf16", "fp16", "fp8"):
        assert named(device="cuda", precision=precision) == ["torch-folded", "torch-graphed", "torch-kernels"]
        assert named(precision=precision) == ["torch-folded"]


def test_float32_is_not_rounded_to_ten_bits():
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    try:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
        with torch_engines._no_tf32(Settings(size=SIZE, device="cuda")):
            assert [flag.allow_tf32 for flag in flags] == [False, False]
        assert [flag.allow_tf32 for flag in flags] == [True, False]
        with torch_engines._no_tf32(Settings(size=SIZE, device="cuda", precision="bf16")):
            assert [flag.allow_tf32 for flag in flags] == [True, False]
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp8"])
@pytest.mark.parametrize("name", ["torch-folded", "torch-graphed", "torch-kernels", "torch-compiled"])
def test_on_a_gpu(name, precision):
    if precision == "fp8" and torch_engines.float8.unavailable("cuda"):
        pytest.skip("this GPU has no FP8")
    network = tiny(depths=(1, 1, 1, 1)).eval()
    engine = create_engine(network, name, Settings(size=SIZE, precision=precision, batch_size=2, device="cuda"))
    answers = {batch: engine(images(*SIZE, batch=batch)) for batch in (1, 2, 5)}
    for batch, found in answers.items():
        assert difference(found, plain(network, images(*SIZE, batch=batch))) < MAX_DIFFERENCE[precision]
    engine.close()


def test_linear_layers_that_are_left_are_those_of_the_classifier(network):
    engine = create_engine(network, "torch-folded", Settings(size=SIZE, precision="fp8"))
    left = [name for name, module in engine._call.named_modules() if isinstance(module, FusedLinear)]
    assert left in ([], ["fc"])  # [] where oneDNN has taken it
