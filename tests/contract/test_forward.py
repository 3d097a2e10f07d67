"""What any user of a backbone counts on: sizes, batches, precision, gradients, copies, checkpointing."""

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import openfastervit
from openfastervit.layers import DropPath, HierarchicalAttention, PositionMLP
from openfastervit.models.fastervit import fit_window
from tests.networks import DISTINCT, GLOBAL, HAT, KINDS, SCALED, TINY, images, tiny

every_variant = pytest.mark.parametrize("name", DISTINCT)
every_kind = pytest.mark.parametrize("name", KINDS)


@every_variant
def test_any_size(name: str) -> None:
    """Odd, narrow and large images through one network: stages at strides 4 to 32, rounded up."""
    model = tiny(name).eval()
    for height, width in ((32, 32), (33, 95), (224, 224), (257, 130), (64, 700)):
        x = images(height, width, batch=1)
        with torch.no_grad():
            features, stages = model.forward_intermediates(x)
            assert torch.equal(model(x), model.forward_head(features))
        for i, stage in enumerate(stages):
            stride = 4 * 2**i
            assert stage.shape == (1, 16 * 2**i, -(-height // stride), -(-width // stride))
            assert stage.isfinite().all()


@settings(max_examples=15)
@given(st.integers(32, 300), st.integers(32, 300), st.sampled_from(KINDS))
def test_one_image_is_the_same_in_a_batch(height: int, width: int, name: str) -> None:
    model = tiny(name).double().eval()
    x = images(height, width, batch=3, dtype=torch.float64)
    with torch.no_grad():
        together = model(x)
        alone = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-10)


@settings(max_examples=10)
@given(st.integers(32, 260), st.integers(32, 260), st.sampled_from(KINDS))
def test_transposing_image_and_parameters_transposes_the_maps(height: int, width: int, name: str) -> None:
    model = tiny(name).double().eval()
    mirror = copy.deepcopy(model)
    with torch.no_grad():
        for part in mirror.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.copy_(part.weight.transpose(2, 3).clone())
            elif isinstance(part, PositionMLP):
                part.fc1.weight.copy_(part.fc1.weight.flip(1))
        x = images(height, width, batch=1, dtype=torch.float64)
        expected = model.forward_intermediates(x, intermediates_only=True)
        found = mirror.forward_intermediates(x.transpose(2, 3), intermediates_only=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.transpose(2, 3), other, rtol=1e-9, atol=1e-9)


@every_kind
def test_channels_last_is_the_same(name: str) -> None:
    model = tiny(name).eval()
    x = images(96, 160)
    with torch.no_grad():
        expected = model(x)
        found = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@every_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_finite_and_near(name: str, dtype: torch.dtype) -> None:
    model = tiny(name).eval()
    x = images(224, 224)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", dtype=dtype):
            mixed = model(x)
        low = model.to(dtype)(x.to(dtype))
    assert low.dtype == dtype
    for found in (mixed, low):
        assert found.isfinite().all()
        assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


@every_variant
def test_every_parameter_learns(name: str) -> None:
    """One step moves every parameter: none is unused, none is cut off."""
    model = tiny(name, drop_path_rate=0.0).train()
    size = 32 * max(max(stage.attention.window_size) for stage in list(model.stages)[2:])
    loss = F.cross_entropy(model(images(min(size, 256), min(size, 256))), torch.tensor([1, 2]))
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    # Biases just before a batch norm do nothing; every other gradient is alive.
    dead = [key for key, p in model.named_parameters() if p.grad.abs().max() == 0]
    assert not [key for key in dead if not key.endswith(("conv1.bias", "conv2.bias"))]


@every_kind
def test_drop_path_grows_linearly(name: str) -> None:
    model = tiny(name, depths=(2, 1, 3, 2), drop_path_rate=0.35)
    rates = [
        [block.drop_path.drop_prob if hasattr(block, "drop_path") else block.window.drop_path.drop_prob]
        for block in model.modules()
        if type(block).__name__ in ("ConvBlock", "AttentionBlock")
    ]
    torch.testing.assert_close(torch.tensor(rates).flatten(), torch.linspace(0, 0.35, 8))
    for block in model.modules():
        if getattr(block, "carrier", None) is not None:
            assert block.carrier.drop_path.drop_prob == block.window.drop_path.drop_prob
    model.train()
    torch.manual_seed(0)
    first, second = model(images(128, 128)), model(images(128, 128))
    assert not torch.equal(first, second)
    assert sum(isinstance(part, DropPath) for part in model.modules()) >= 8


@every_variant
def test_checkpointing_changes_nothing(name: str) -> None:
    """Same loss, gradients and running statistics as without, drop path included."""
    model = tiny(name, drop_path_rate=0.3).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    results = []
    for network in (model, other):
        torch.manual_seed(3)
        loss = F.cross_entropy(network(images(128, 160)), torch.tensor([0, 4]))
        loss.backward()
        results.append(loss)
    assert torch.equal(*results)
    for (key, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=key)
    for (key, one), (_, two) in zip(model.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(one, two), key


@every_kind
def test_forward_is_pure(name: str) -> None:
    """A call at one size leaves nothing behind that a call at another could find."""
    model = tiny(name).eval()
    before = copy.deepcopy(model.__dict__["_modules"])
    with torch.no_grad():
        fresh = model(images(96, 130))
        model(images(224, 224))
        model(images(300, 64))
        assert torch.equal(model(images(96, 130)), fresh)

    def attributes(modules: dict[str, nn.Module]) -> list[tuple[str, list[str]]]:
        parts = [part for module in modules.values() for part in module.named_modules()]
        return [(name, sorted(part.__dict__)) for name, part in parts]

    assert attributes(before) == attributes(model.__dict__["_modules"])
    assert {key for key, _ in model.named_buffers()} <= set(model.state_dict())


@every_variant
def test_copies_after_a_training_step(name: str) -> None:
    """deepcopy, pickle, torch.save and safetensors after a step: equal outputs, no shared memory."""
    model = tiny(name).train()
    optimizer = torch.optim.AdamW(model.parameters())
    F.cross_entropy(model(images(64, 64)), torch.tensor([1, 2])).backward()
    optimizer.step()
    x = images(64, 96)
    with torch.no_grad():
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        reloaded = tiny(name, seed=5)
        reloaded.load_state_dict(safetensors.torch.load(safetensors.torch.save(model.state_dict())))
        copies.append(reloaded.train())
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        buffer.seek(0)
        again = tiny(name, seed=6)
        again.load_state_dict(torch.load(buffer, weights_only=True))
        copies.append(again.train())
        for network in [model, *copies]:
            network.eval()
        expected = model(x)
        for other in copies:
            assert torch.equal(other(x), expected)
        next(model.parameters()).zero_()
        for other in copies:
            assert torch.equal(other(x), expected)


@every_variant
def test_meta_device_and_late_initialisation(name: str) -> None:
    """Built without memory, materialised, initialised: the distribution a constructor gives."""
    with torch.device("meta"):
        model = tiny(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(77)
    torch.manual_seed(0)
    model.init_weights()
    for part in model.modules():
        if isinstance(part, nn.Linear):
            assert part.weight.abs().max() <= 2
            if part.weight.numel() > 2000:
                assert part.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert part.bias is None or not part.bias.any()
    assert not any((tensor == 77).any() for tensor in [*model.parameters(), *model.buffers()])
    model.eval()(images(64, 64))


@every_variant
def test_parameters_do_not_depend_on_the_call(name: str) -> None:
    """img_size fixes no shape: a network built for another size takes the same weights."""
    model = tiny(name)
    other = tiny(name, img_size=(320, 480), seed=9)
    other.load_state_dict(model.state_dict())
    x = images(160, 200)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), other.eval()(x))


# --- Windows for a size ---------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.sampled_from([7, 12, 14, 16, 24, 32, 48]), st.integers(1, 2))
def test_fit_pads_least_then_stays_near(length: int, trained: int, least: int) -> None:
    side = fit_window(length, trained, least)
    assert side >= least
    shortest = max(least, min(length, -(-trained // 2)))
    for other in range(shortest, trained + trained // 2 + 1):
        padding, found = -length % other, -length % side
        assert (found, abs(side - trained)) <= (padding, abs(other - trained))


@every_variant
def test_pad_equals_the_released_network(name: str) -> None:
    model = tiny(name).eval()
    x = images(256, 320)
    with torch.no_grad():
        expected = model(x)
        model.set_input_size((256, 320), windows="pad")
        assert torch.equal(model(x), expected)
        model.set_input_size((256, 320), windows="fit")
        for stage in list(model.stages)[2:]:
            stage_map = [-(-side // (16 if stage is model.stages[2] else 32)) for side in (256, 320)]
            assert all(side % window == 0 for side, window in zip(stage_map, stage.attention.window_size, strict=True))
        assert not torch.equal(model(x), expected)
        model.set_input_size(windows="pad")
        assert torch.equal(model(x), expected)


def test_fit_does_not_pad() -> None:
    """At 256 the maps of 16 and 8 cells take windows of 8: no cell is padding, and the result says so."""
    model = tiny(HAT).eval()
    model.set_input_size(256, windows="fit")
    assert [stage.attention.window_size for stage in list(model.stages)[2:]] == [(8, 8), (8, 8)]
    direct = tiny(HAT, img_size=256, window_sizes=(7, 7, 8, 8)).eval()
    direct.load_state_dict(model.state_dict())
    x = images(256, 256)
    with torch.no_grad():
        assert torch.equal(model(x), direct(x))


@pytest.mark.parametrize("size", [31, (32, 16), (224,), 0, -224, 224.5, (224.0, 224), "ab"])
def test_wrong_size_is_named(size: object) -> None:
    with pytest.raises(ValueError, match="img_size"):
        tiny(HAT).set_input_size(size)
    with pytest.raises(ValueError, match="img_size"):
        tiny(HAT, img_size=size)


def test_wrong_windows_are_named() -> None:
    with pytest.raises(ValueError, match="windows='crop'"):
        tiny(HAT).set_input_size(224, windows="crop")  # type: ignore[arg-type]


# --- Wrong input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 31, 224), "31 x 224; height and width must be at least 32"),
        ((1, 1, 64, 64), "images have 1 channels, the network takes 3"),
        ((3, 64, 64), "3 dimensions"),
    ],
)
def test_wrong_images_are_named(shape: tuple[int, ...], message: str) -> None:
    model = tiny(HAT).eval()
    features = openfastervit.create_model(HAT, features_only=True, **TINY)
    for call in (model, model.forward_features, model.forward_intermediates, features):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 1, 1)}, "depths"),
        ({"depths": (1, 1, 0, 1)}, "depths"),
        ({"num_heads": (1, 1, 3, 4)}, "num_heads=3 does not divide dim=64"),
        ({"hierarchical": (True, False, True, False)}, "hierarchical"),
        ({"carrier_size": 8}, "carrier_size=8 is larger than the window 7 x 7"),
        ({"window_sizes": 7}, "window_sizes=7"),
        ({"window_sizes": (7, 7, 0, 7)}, r"window_sizes\[2\]=0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
        ({"drop_path_rate": "a"}, "drop_path_rate='a'"),
        ({"num_classes": 2.5}, "num_classes=2.5"),
        ({"num_classes": "ten"}, "num_classes='ten'"),
        ({"dim": 16.0}, "dim=16.0"),
        ({"in_chans": "3"}, "in_chans='3'"),
        ({"stem_dim": 0}, "stem_dim=0"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
        ({"global_pool": "foo"}, "global_pool='foo'"),
        ({"window_sizes": (7, 7, 7.0, 7)}, r"window_sizes\[2\]=7.0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(HAT, **options)


def test_layer_scale_starts_small() -> None:
    model = openfastervit.create_model(SCALED, dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 4))
    gammas = [parameter for key, parameter in model.named_parameters() if "gamma" in key]
    assert gammas
    assert all((gamma == 1e-5).all() for gamma in gammas)


def test_global_variant_has_no_carriers() -> None:
    stages = [part for part in tiny(GLOBAL).modules() if isinstance(part, HierarchicalAttention)]
    assert all(stage.carrier_init is None for stage in stages)
