import pytest
import torch
from captum import attr as captum
from torch import Tensor, nn

from openfastervit.inference.explain import GradCam, grad_cam
from tests.inference.explain.models import WINDOWED, hooks
from tests.networks import KINDS, images, tiny


@pytest.mark.parametrize("attention", ["hat", "window", "shifted-window", "twins", "edgevit", "global"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_agrees_with_captum(attention, stage):
    model = tiny(**WINDOWED, attention=attention).eval()
    x = images(128, 96)
    speaking = False
    for target in (None, 3, [7, 0]):
        found = grad_cam(model, x, classes=target, stage=stage)
        places = model(x).argmax(dim=1).tolist() if target is None else [3, 3] if target == 3 else target
        assert found.classes == tuple(places)
        reference = captum.LayerGradCam(model, model.stages[stage]).attribute(x, target=places, relu_attributions=True)
        assert reference.shape == (2, 1, 32 // 2**stage, 24 // 2**stage)
        speaking |= bool((reference > 0).any())
        torch.testing.assert_close(found.maps, reference[:, 0].detach(), atol=1e-6, rtol=1e-4)
    assert speaking


@pytest.mark.parametrize("name", KINDS)
def test_agrees_with_nudging_every_cell(name):
    """The gradient by finite differences, in float64, from the map of the last stage on."""
    model = tiny(name).double().eval()
    x = images(224, 160, batch=1, dtype=torch.float64)
    with torch.no_grad():
        activation = model.stages(model.stem(x)).contiguous()
        gradient = torch.zeros_like(activation)
        for place in range(activation.numel()):
            step = torch.zeros(activation.numel(), dtype=torch.float64)
            step[place] = 1e-5
            step = step.view_as(activation)
            up, down = (model.forward_head(model.norm(activation + sign * step))[0, 4] for sign in (1, -1))
            gradient.view(-1)[place] = (up - down) / 2e-5
        expected = (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1).relu()
    found = grad_cam(model, x, classes=4)
    assert found.maps.dtype == torch.float32
    torch.testing.assert_close(found.maps, expected.float(), atol=1e-6, rtol=1e-4)


def test_tells_what_it_is_of():
    model = tiny(**WINDOWED).eval()
    x = images(150, 100)
    found = grad_cam(model, x, stage=2)
    assert isinstance(found, GradCam)
    assert (found.name, found.stride, found.image_size, found.maps.shape) == ("stages.2", 16, (150, 100), (2, 10, 7))
    torch.testing.assert_close(found.probabilities, model(x).softmax(dim=1).detach())
    assert found.over_image().shape == (2, 150, 100)
    assert not found.maps.requires_grad
    assert grad_cam(model, x).name == "stages.3"


def test_the_model_is_left_as_it_was():
    model = tiny(**WINDOWED).eval()
    model.stem.requires_grad_(False)
    x = images(128, 128)
    model(x).sum().backward()
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    grad_cam(model, x)
    with pytest.raises(ValueError, match="stage=9"):
        grad_cam(model, x, stage=9)
    assert not hooks(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    for name, parameter in model.named_parameters():
        before = gradients[name]
        assert (parameter.grad is None) == (before is None)
        assert before is None or torch.equal(parameter.grad, before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert x.grad is None
    assert not x.requires_grad


def test_frozen_networks_and_callers_without_gradients_are_served():
    model = tiny(**WINDOWED).eval()
    x = images(128, 128)
    expected = grad_cam(model, x).maps
    model.requires_grad_(False)
    torch.testing.assert_close(grad_cam(model, x).maps, expected)
    with torch.no_grad():
        torch.testing.assert_close(grad_cam(model, x).maps, expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        torch.testing.assert_close(grad_cam(model, x.clone()).maps, expected)
        assert torch.is_inference_mode_enabled()
    model.set_grad_checkpointing()
    torch.testing.assert_close(grad_cam(model, x).maps, expected)


@torch.no_grad()
def test_nothing_that_speaks_for_a_class_is_zero():
    model = tiny(**WINDOWED).eval()
    model.head.fc.weight[2].zero_()
    found = grad_cam(model, images(128, 128), classes=2)
    assert not found.maps.any()
    assert not found.over_image().isnan().any()


def test_what_cannot_be_shown_is_refused():
    model = tiny(**WINDOWED).eval()
    x = images(128, 128)
    with pytest.raises(ValueError, match="stage=4 is none of the network's; choose from 0 to 3"):
        grad_cam(model, x, stage=4)
    with pytest.raises(ValueError, match="classes=10 is none of the network's; choose from 0 to 9"):
        grad_cam(model, x, classes=10)
    with pytest.raises(ValueError, match="classes=-1"):
        grad_cam(model, x, classes=[0, -1])
    with pytest.raises(ValueError, match="3 for 2 images"):
        grad_cam(model, x, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="no classifier"):
        grad_cam(tiny(**WINDOWED, num_classes=0).eval(), x)
    with pytest.raises(ValueError, match="training mode"):
        grad_cam(model.train(), x)
    with pytest.raises(TypeError, match="Linear"):
        grad_cam(nn.Linear(2, 2), Tensor())
