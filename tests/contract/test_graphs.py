"""Graph capture: compile, export, TorchScript, traces. Cheap backends everywhere, Inductor once."""

import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from openfastervit.models.fastervit import FasterViT
from tests.networks import DISTINCT, HAT, KINDS, SCALED, images, tiny

every_variant = pytest.mark.parametrize("name", DISTINCT)
every_kind = pytest.mark.parametrize("name", KINDS)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@every_variant
def test_compiles_as_one_graph(name: str) -> None:
    model = tiny(name).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = images(128, 160)
    with torch.no_grad():
        close(compiled(x), model(x))


@every_kind
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_training_step(name: str, checkpointing: bool) -> None:
    """Forward and backward in one graph each, with and without recomputation: the gradients of eager mode."""
    gradients = []
    for wrap in (False, True):
        model = tiny(name).train()
        model.set_grad_checkpointing(checkpointing)
        network = torch.compile(model, backend="aot_eager", fullgraph=True) if wrap else model
        F.cross_entropy(network(images(128, 160)), torch.tensor([1, 2])).backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
        gradients[-1].update({key: b for key, b in model.named_buffers() if b.is_floating_point()})
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected, rtol=1e-3, atol=1e-5, msg=key)


def test_compiles_under_autocast() -> None:
    model = tiny(SCALED).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = images(128, 128)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(x), model(x))


def test_inductor() -> None:
    """The real compiler, once."""
    model = tiny(HAT, depths=(1, 1, 1, 1)).eval()
    x = images(128, 160)
    with torch.no_grad():
        close(torch.compile(model, fullgraph=True)(x), model(x))


@every_variant
def test_exports_with_any_batch(name: str) -> None:
    model = tiny(name).eval()
    program = torch.export.export(model, (images(224, 192),), dynamic_shapes=({0: Dim("batch")},))
    for batch in (1, 2, 7):
        x = images(224, 192, batch=batch)
        with torch.no_grad():
            close(program.module()(x), model(x))


@every_kind
def test_exports_with_any_height_and_width(name: str) -> None:
    """One program for all sizes, padded or not, square or not."""
    model = tiny(name).eval()
    sizes = {0: Dim("batch"), 2: Dim("height", min=33, max=4096), 3: Dim("width", min=33, max=4096)}
    program = torch.export.export(model, (images(256, 320),), dynamic_shapes=(sizes,))
    for height, width in ((224, 224), (230, 301), (480, 640), (113, 40), (64, 700)):
        x = images(height, width, batch=1)
        with torch.no_grad():
            close(program.module()(x), model(x))


def test_exported_with_carriers_refuses_a_single_window() -> None:
    """The limit of an exported program: it uses carriers or it does not, as for the images it was exported with."""
    model = tiny(HAT).eval()
    sizes = {2: Dim("height", min=33, max=512), 3: Dim("width", min=33, max=512)}
    program = torch.export.export(model, (images(256, 320),), dynamic_shapes=(sizes,))
    with pytest.raises((AssertionError, RuntimeError), match="> 1"):
        program.module()(images(64, 112))
    small = torch.export.export(model, (images(64, 96),), dynamic_shapes=(sizes,))
    x = images(100, 112)
    with torch.no_grad():
        close(small.module()(x), model(x))
    with pytest.raises((AssertionError, RuntimeError), match="<= 1"):
        small.module()(images(224, 224))


def test_exported_program_survives_a_file(tmp_path: object) -> None:
    model = tiny(SCALED).eval()
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, (images(224, 224),), dynamic_shapes=({0: Dim("batch")},)), buffer)
    buffer.seek(0)
    x = images(224, 224, batch=3)
    with torch.no_grad():
        close(torch.export.load(buffer).module()(x), model(x))


@every_kind
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::DeprecationWarning")
def test_torchscript(name: str) -> None:
    """Scripted, saved and loaded: any size, as timm's networks."""
    model = tiny(name).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    for size in ((224, 224), (100, 131)):
        x = images(*size)
        with torch.no_grad():
            close(scripted(x), model(x))
    with pytest.raises(Exception, match="at least 32"):
        scripted(images(16, 16))


def test_set_input_size_on_a_compiled_network() -> None:
    model = tiny(HAT).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = images(256, 256)
    with torch.no_grad():
        close(compiled(x), model(x))
        compiled.set_input_size(256, windows="fit")
        close(compiled(x), model(x))


def test_vmap_and_functional_call() -> None:
    """torch.func: gradients of one image at a time equal those of each image alone."""
    model = tiny(HAT, depths=(1, 1, 1, 1)).double().eval()
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    x = images(128, 128, dtype=torch.float64)
    both = [torch.func.grad(loss)(parameters, image) for image in x]
    model.zero_grad()
    sum(loss(dict(model.named_parameters()), image) for image in x).backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(both[0][key] + both[1][key], parameter.grad, rtol=1e-8, atol=1e-9)


def test_pickled_class_is_ours() -> None:
    assert type(pickle.loads(pickle.dumps(tiny(HAT)))) is FasterViT
