"""Segmenters: UPerNet and Mask2Former of transformers on our backbones."""

import copy
import importlib.util
from collections.abc import Mapping
from typing import Any

import pytest
import timm.optim
import torch
import transformers as hf
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from openfastervit.models.features import Backbone, create_backbone
from openfastervit.tasks.segmentation.networks import Segmenter, create_segmenter
from tests.networks import images
from tests.pocket import TRAINED

KINDS = ("upernet", "mask2former")
every_kind = pytest.mark.parametrize("kind", KINDS)
CLASSES = 4
TINY: dict[str, dict[str, Any]] = {
    "upernet": {"hidden_size": 16, "auxiliary_channels": 8},
    "mask2former": {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 32,
        "dim_feedforward": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 4,
        "num_queries": 6,
        "train_num_points": 64,
    },
}


def segmenter(
    kind: Any, *, seed: int = 0, on: Backbone | None = None, options: Mapping[str, Any] | None = None
) -> Segmenter:
    torch.manual_seed(seed)
    backbone = create_backbone("fastervit_0", options=TRAINED) if on is None else on
    return create_segmenter(kind, backbone, CLASSES, options={**TINY[kind], **(options or {})})


def label_maps(*size: int, batch: int = 2, seed: int = 4) -> Tensor:
    """Coarse label maps ``(batch, H, W)`` with some pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, CLASSES + 1, (batch, 4, 5), generator=generator).float()
    labels = nn.functional.interpolate(coarse[:, None], size=size, mode="nearest")[:, 0].long()
    return labels.masked_fill(labels == CLASSES, 255)


def learn(network: Segmenter, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Losses, with gradients of their sum in the parameters."""
    network.zero_grad()
    losses = network.train()(x, labels)
    sum(losses.values()).backward()
    return losses


# --- Losses -----------------------------------------------------------------------------------------------------------


def test_upernet_s_losses_are_the_library_s() -> None:
    network = segmenter("upernet").train()
    x, labels = images(64, 96), label_maps(64, 96)
    assert (labels == 255).any()
    torch.manual_seed(6)  # of stochastic depth
    losses = network(x, labels)
    assert set(losses) == {"loss_decode", "loss_auxiliary"}
    torch.manual_seed(6)
    expected = network.network(pixel_values=x, labels=labels)
    torch.testing.assert_close(losses["loss_decode"] + losses["loss_auxiliary"], expected.loss)
    torch.testing.assert_close(
        losses["loss_decode"], nn.functional.cross_entropy(expected.logits, labels, ignore_index=255)
    )
    alone = segmenter("upernet", options={"use_auxiliary_head": False}).train()
    assert set(alone(x, labels)) == {"loss_decode"}


def test_mask2former_s_losses_are_the_library_s() -> None:
    network = segmenter("mask2former").train()
    x, labels = images(64, 96), label_maps(64, 96)
    torch.manual_seed(6)
    losses = network(x, labels)
    assert set(losses) == {"loss_cross_entropy", "loss_mask", "loss_dice"}
    present = [[c for c in range(CLASSES) if (image == c).any()] for image in labels]
    torch.manual_seed(6)
    expected = network.network(
        pixel_values=x,
        mask_labels=[
            torch.stack([image == c for c in classes]).float() for image, classes in zip(labels, present, strict=True)
        ],
        class_labels=[torch.tensor(classes) for classes in present],
    ).loss
    torch.testing.assert_close(sum(losses.values()), expected)


@every_kind
def test_a_batch_of_which_all_is_ignored(kind: str) -> None:
    """Losses of 0, and gradients of 0 for all: nobody waits for one."""
    network = segmenter(kind)
    x, labels = images(64, 96), torch.full((2, 64, 96), 255)
    names = set(learn(network, x, label_maps(64, 96)))
    losses = learn(network, x, labels)
    assert set(losses) == names
    assert all(float(loss.detach()) == 0 for loss in losses.values())
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())
    if kind == "upernet":  # what would be learned otherwise
        assert network.network(pixel_values=x, labels=labels).loss.isnan()


def test_an_image_of_which_all_is_ignored_changes_nothing_in_mask2former() -> None:
    network = segmenter("mask2former").train()
    network.feature_backbone.eval()  # else its batch norm sees the image
    x, labels = images(64, 96, batch=3), label_maps(64, 96, batch=3)
    labels[1] = 255
    torch.manual_seed(2)
    losses = network(x, labels)
    torch.manual_seed(2)
    expected = network(x[[0, 2]], labels[[0, 2]])
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-5)


@every_kind
@pytest.mark.parametrize("name", ["fastervit_0", "resnet18"])
def test_everything_learns(kind: str, name: str) -> None:
    """Every parameter gets a gradient, and batch norm its statistics: nothing is frozen."""
    backbone = create_backbone(name, options=TRAINED if name == "fastervit_0" else {})
    before = copy.deepcopy(backbone.state_dict())
    network = segmenter(kind, on=backbone)
    assert network.feature_backbone is backbone
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    losses = learn(network, images(64, 96), label_maps(64, 96))
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    assert all(p.requires_grad and p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 5
    assert all(module.num_batches_tracked == 1 and module.weight.grad is not None for module in norms)


@every_kind
def test_what_is_drawn_is_all_that_a_loss_depends_on(kind: str) -> None:
    network = segmenter(kind)
    size = (96, 352)  # of no other test: inference mode makes the library's tables
    x, labels = images(*size), label_maps(*size)
    with torch.inference_mode():
        network.eval()(x)
    found = []
    for other in (None, images(64, 64)):
        if other is not None:
            network.train()(other, label_maps(64, 64))
        torch.manual_seed(1)
        found.append([*learn(network, x, labels).values(), *(p.grad.clone() for p in network.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# --- Scores -----------------------------------------------------------------------------------------------------------


def test_upernet_s_scores_are_the_library_s() -> None:
    network = segmenter("upernet").eval()
    x = images(70, 101)
    with torch.no_grad():
        assert torch.equal(network(x), network.network(pixel_values=x).logits)


def test_mask2former_s_scores_are_the_library_s() -> None:
    """transformers' processor scales masks to 384 x 384 first: on images of that size both say the same."""
    network = segmenter("mask2former").eval()
    x = images(384, 384, batch=1)
    with torch.no_grad():
        scores = network(x)
        outputs = network.network(pixel_values=x)
    (expected,) = hf.Mask2FormerImageProcessor().post_process_semantic_segmentation(
        outputs, target_sizes=[(384, 384)], return_segmentation_scores=True
    )
    torch.testing.assert_close(scores[0], expected.segmentation_scores)
    assert torch.equal(scores.argmax(1)[0], expected.segmentation)


def test_mask2former_s_scores_by_hand() -> None:
    network = segmenter("mask2former").eval()
    x = images(50, 77)
    with torch.no_grad():
        scores = network(x)
        outputs = network.network(pixel_values=x)
    expected = torch.zeros(2, CLASSES, 50, 77)
    for i in range(2):
        for query in range(TINY["mask2former"]["num_queries"]):
            mask = outputs.masks_queries_logits[i, query][None, None]
            mask = nn.functional.interpolate(mask, size=(50, 77), mode="bilinear").sigmoid()[0, 0]
            logits = outputs.class_queries_logits[i, query].double().exp()
            for k in range(CLASSES):
                expected[i, k] += mask * (logits[k] / logits.sum())
    torch.testing.assert_close(scores, expected)


@every_kind
@pytest.mark.parametrize("size", [(480, 640), (333, 500), (500, 333), (32, 33)])
def test_images_of_any_shape(kind: str, size: tuple[int, int]) -> None:
    network = segmenter(kind).eval()
    x = images(*size, batch=1)
    with torch.no_grad():
        scores = network(x)
        assert scores.shape == (1, CLASSES, *size)
        assert scores.isfinite().all()
        assert torch.equal(network(x), scores)
        assert torch.equal(network(x, label_maps(*size, batch=1)), scores)


@every_kind
def test_learning_from_an_odd_size(kind: str) -> None:
    losses = learn(segmenter(kind), images(75, 90), label_maps(75, 90))
    assert all(loss.isfinite() for loss in losses.values())


@every_kind
@pytest.mark.parametrize("size", [(1, 1), (31, 64), (200, 20)])
def test_small_images_are_padded(kind: str, size: tuple[int, int]) -> None:
    """With zeros, right and below, to what the backbone takes; it learns from no such image."""
    network = segmenter(kind).eval()
    small = images(*size)
    padded = small.new_zeros(len(small), 3, max(32, size[0]), max(32, size[1]))
    padded[..., : size[0], : size[1]] = small
    with torch.no_grad():
        torch.testing.assert_close(network(small), network(padded)[..., : size[0], : size[1]])
    labels = torch.zeros(len(small), *size, dtype=torch.int64)
    with pytest.raises(ValueError, match="32"):
        network.train()(small, labels)


# --- One image --------------------------------------------------------------------------------------------------------


def test_a_batch_of_one_image() -> None:
    """What torch's batch norm cannot normalise is refused with the mends, and they do mend it."""
    x, labels = images(64, 96, batch=1), label_maps(64, 96, batch=1)
    network = segmenter("upernet").train()
    for given in ((x, labels), (x,)):
        with pytest.raises(ValueError, match=r"a batch of one image.*leave 1 out of pool_scales"):
            network(*given)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        network.network(pixel_values=x)
    with torch.no_grad():
        assert network.eval()(x).isfinite().all()
    learn(network, images(64, 96), label_maps(64, 96))
    assert all(
        loss.isfinite() for loss in learn(segmenter("upernet", options={"pool_scales": [2, 3]}), x, labels).values()
    )
    for module in network.head_parts().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert network.feature_backbone.training
    assert all(loss.isfinite() for loss in network(x, labels).values())
    assert all(loss.isfinite() for loss in learn(segmenter("mask2former"), x, labels).values())


# --- A network like others --------------------------------------------------------------------------------------------


@every_kind
def test_layer_decay(kind: str) -> None:
    network = segmenter(kind)
    depth = network.group_matcher()
    depths = {name: depth(name) for name, _ in network.named_parameters()}
    inside = f"{network.backbone_name}.model."
    assert depths[f"{inside}stem.conv1.weight"] == 0
    head = {depth for name, depth in depths.items() if not name.startswith(inside)}
    assert head == {max(depths.values())}
    assert all(depth < max(head) for name, depth in depths.items() if name.startswith(inside))
    optimiser = timm.optim.create_optimizer_v2(network, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    assert len({group["lr_scale"] for group in optimiser.param_groups}) == len(set(depths.values()))
    assert network.no_weight_decay() <= set(depths)


@every_kind
def test_checkpoint(kind: str) -> None:
    network, other = segmenter(kind).eval(), segmenter(kind, seed=1).eval()
    x = images(64, 96)
    with torch.no_grad():
        expected = network(x)
        assert not torch.equal(other(x), expected)
        other.load_state_dict({name: value.clone() for name, value in network.state_dict().items()})
        assert torch.equal(other(x), expected)
        assert torch.equal(copy.deepcopy(other)(x), expected)
        assert torch.equal(convert_sync_batchnorm(other)(x), expected)


@every_kind
def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    networks = [segmenter(kind) for _ in range(2)]
    networks[1].set_grad_checkpointing(True)
    found = []
    for network in networks:
        torch.manual_seed(0)
        found.append(
            [*learn(network, images(64, 96), label_maps(64, 96)).values(), *(p.grad for p in network.parameters())]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("upernet", {"hidden": 3}, "unknown option 'hidden' of UperNet; did you mean hidden_size"),
        ("upernet", {"loss_ignore_index": 0}, "loss_ignore_index"),
        ("mask2former", {"num_queries": "many"}, "num_queries"),
        ("mask2former", {"backbone_config": {}}, "backbone_config"),
    ],
)
def test_bad_options(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        segmenter(kind, options=options)


def test_bad_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = create_backbone("fastervit_0", options=TRAINED)
    with pytest.raises(ValueError, match="kind='fcn' is unknown; there is upernet, mask2former"):
        create_segmenter("fcn", backbone, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_classes=1 "):
        create_segmenter("upernet", backbone, 1)
    with pytest.raises(ValueError, match=r"strides \[4, 8, 16, 32\], not \[8, 16, 32\]"):
        create_segmenter("upernet", create_backbone("fastervit_0", options=TRAINED, strides=(8, 16, 32)), 3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'openfastervit\[detection\]'"):
        create_segmenter("mask2former", backbone, 3)


@every_kind
def test_bad_labels(kind: str) -> None:
    network = segmenter(kind).train()
    with pytest.raises(ValueError, match=r"labels of shape \[2, 64, 64\].*\[2, 64, 96\]"):
        network(images(64, 96), label_maps(64, 64))
    if kind == "mask2former":
        with pytest.raises(
            ValueError, match=f"the label {CLASSES} is neither a class, from 0 to {CLASSES - 1}, nor 255"
        ):
            network(images(64, 96), torch.full((2, 64, 96), CLASSES))
