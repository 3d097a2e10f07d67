"""Quantisation to int8: within the loss that is accepted, measured here by other means, or refused."""

import numpy as np
import openvino
import openvino.properties.hint as hint
import pytest
import torch
from torch import Tensor

from openfastervit.inference import quantise
from openfastervit.inference.engines import EngineError, Settings, create_engine
from openfastervit.inference.fold import fold
from openfastervit.inference.graphs import to_openvino
from openfastervit.inference.openvino_core import openvino_core
from openfastervit.inference.quantise import quantise_openvino
from tests.networks import HAT, tiny

pytestmark = pytest.mark.early  # one process quantises what they share


def photographs(count: int, side: int = 64) -> Tensor:
    """Smooth images, each of its own brightness and colours."""
    generator = torch.Generator().manual_seed(3)
    small = torch.randn(count, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(small, size=(side, side), mode="bicubic")


def probabilities(model: openvino.Model, images: Tensor) -> np.ndarray:
    compiled = openvino_core().compile_model(model, "CPU", {hint.inference_precision(): openvino.Type.f32})
    return torch.from_numpy(compiled(images.numpy())[0]).softmax(-1).numpy()


def quantisers(model: openvino.Model) -> int:
    return sum(node.get_type_name() == "FakeQuantize" for node in model.get_ops())


@pytest.fixture(scope="module")
def network():
    return tiny(HAT).eval()


@pytest.fixture(scope="module")
def model(network):
    return to_openvino(fold(network, 64), (64, 64))


@pytest.fixture(scope="module")
def quantised(model):
    return quantise_openvino(model, photographs(32))


def test_the_loss_is_within_what_is_accepted(model, quantised):
    unseen = photographs(64)[40:]
    distance = np.abs(probabilities(model, unseen) - probabilities(quantised, unseen)).sum(-1).mean() / 2
    assert 0 < distance < 1.5 * quantise.MAX_LOSS  # on images that were not used to find it
    assert quantisers(quantised) > 20
    assert quantisers(model) == 0


def test_it_takes_any_batch(quantised):
    x = photographs(5)
    one_by_one = np.concatenate([probabilities(quantised, image[None]) for image in x])
    np.testing.assert_allclose(probabilities(quantised, x), one_by_one, atol=1e-6)


def test_layers_that_lose_too_much_stay_in_higher_precision():
    model = to_openvino(fold(tiny(HAT, depths=(1, 1, 1, 1), hierarchical=[False] * 4).eval(), 32), (32, 32))
    images = photographs(16, 32)
    everything = quantise_openvino(model, images, max_loss=1.0)
    held_out = images[3::4]
    truth = probabilities(model, held_out)
    loss = np.abs(truth - probabilities(everything, held_out)).sum(-1).mean() / 2
    strict = quantise_openvino(model, images, max_loss=loss * 0.7)
    assert 0 < quantisers(strict) < quantisers(everything)
    assert np.abs(truth - probabilities(strict, held_out)).sum(-1).mean() / 2 <= loss * 0.7


def test_too_few_images_are_refused(model, network):
    with pytest.raises(ValueError, match="7 calibration images are too few; give at least 8"):
        quantise_openvino(model, photographs(7))
    with pytest.raises(EngineError, match="needs calibration images"):
        create_engine(network, "openvino", Settings(size=(64, 64), precision="int8"))


def test_the_engine(network, model, quantised, monkeypatch):
    monkeypatch.setattr("openfastervit.inference.engines.openvino.quantise_openvino", lambda *_: quantised)
    settings = Settings(size=(64, 64), precision="int8", batch_size=3, calibration=photographs(8))
    engine = create_engine(network, "openvino", settings)
    x = photographs(7)
    expected = torch.from_numpy(probabilities(quantised, x))
    assert (engine(x).softmax(-1) - expected).abs().max() < 0.02  # bfloat16 around the products
    engine.close()
