"""Detection transformers: transformers' networks with torchvision's manners."""

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import timm.optim
import torch
import transformers as hf
from torch import Tensor, nn
from torchvision.ops import box_convert

from openfastervit.models.features import Backbone, create_backbone
from openfastervit.tasks.detection.detr import DetrDetector, create_detr
from tests.pocket import TRAINED

KINDS = ("rt-detr", "d-fine", "deformable-detr")
every_kind = pytest.mark.parametrize("kind", KINDS)
CLASSES = 4
TINY: dict[str, Any] = {
    "d_model": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_layers": 2,
    "num_queries": 12,
}
OWN: dict[str, dict[str, Any]] = {
    "rt-detr": {"num_denoising": 8},
    "d-fine": {"num_denoising": 8},
    "deformable-detr": {"encoder_layers": 1},
}
COLOURS: dict[str, Any] = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}


def backbone(name: str = "fastervit_0", **options: Any) -> Backbone:
    return create_backbone(name, options={**TRAINED, **options} if name == "fastervit_0" else {}, strides=(8, 16, 32))


def detector(
    kind: Any, *, seed: int = 0, options: Mapping[str, Any] | None = None, on: Backbone | None = None, **more: Any
) -> DetrDetector:
    torch.manual_seed(seed)
    more = {"min_size": 96, "max_size": 160, **COLOURS, **more}
    options = {**TINY, **OWN[kind], **(options or {})}
    return create_detr(kind, backbone() if on is None else on, CLASSES, options=options, **more)


def photos(*sizes: tuple[int, int], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def objects(*counts: int, size: tuple[int, int] = (96, 128), seed: int = 2) -> list[dict[str, Tensor]]:
    """Targets of images of a size, with so many objects."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    made = []
    for count in counts:
        centres = torch.rand(count, 2, generator=generator) * 0.5 + 0.25
        sides = torch.rand(count, 2, generator=generator) * 0.3 + 0.1
        boxes = torch.cat([centres - sides / 2, centres + sides / 2], 1) * torch.tensor([width, height, width, height])
        labels = torch.randint(1, CLASSES + 1, (count,), generator=generator)
        made.append({"boxes": boxes, "labels": labels})
    return made


def normalised(images: list[Tensor]) -> Tensor:
    """A batch of images of one size, as a network takes them."""
    mean, std = (torch.tensor(COLOURS[name]).view(3, 1, 1) for name in ("mean", "std"))
    return torch.stack([(image - mean) / std for image in images])


# --- Losses -----------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("counts", [(3, 1), (2, 0), (0, 0)])
def test_the_loss_is_the_library_s(kind: str, counts: tuple[int, int]) -> None:
    """Their sum, to the last digits, on inputs and labels that are made here by hand."""
    network = detector(kind, fixed_size=(96, 128)).train()
    assert network.config.auxiliary_loss  # all layers of the decoder learn, as published
    images, targets = photos((96, 128), (96, 128)), objects(*counts)
    torch.manual_seed(5)
    losses = network(images, targets)
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())

    labels = [
        {
            "class_labels": target["labels"] - 1,
            "boxes": box_convert(target["boxes"] / torch.tensor([128.0, 96, 128, 96]), "xyxy", "cxcywh"),
        }
        for target in targets
    ]
    torch.manual_seed(5)
    torch.empty(2).uniform_()  # the transform draws a size for each image, even of one
    expected = network.network(
        pixel_values=normalised(images), pixel_mask=torch.ones(2, 96, 128, dtype=torch.long), labels=labels
    ).loss
    assert float(expected.detach()) > 0
    torch.testing.assert_close(sum(losses.values()), expected, rtol=1e-5, atol=1e-5)


@every_kind
def test_names_of_losses_do_not_depend_on_the_objects(kind: str) -> None:
    network = detector(kind).train()
    images = photos((96, 128), (80, 90))
    names = [list(network(images, objects(*counts))) for counts in ((2, 1), (0, 3), (0, 0))]
    assert names[0] == names[1] == names[2]
    own = {
        "rt-detr": ["loss_vfl"],
        "d-fine": ["loss_vfl", "loss_fgl", "loss_ddf"],
        "deformable-detr": ["loss_ce"],
    }
    assert set(names[0]) == {"loss_bbox", "loss_giou", *own[kind]}


@every_kind
@pytest.mark.parametrize("counts", [(2, 1), (0, 0)])
def test_everything_learns(kind: str, counts: tuple[int, int]) -> None:
    """Every parameter gets a finite gradient, objects or none; the backbone's batch norm learns too."""
    network = detector(kind).train()
    sum(network(photos((96, 128), (80, 90)), objects(*counts, size=(80, 90))).values()).backward()
    learning = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    still = [name for name, parameter in network.named_parameters() if name not in learning]
    assert all(name.endswith((".up", ".reg_scale")) for name in still), still  # D-FINE's constants
    assert not [name for name, parameter in learning.items() if parameter.grad is None]
    assert all(parameter.grad.isfinite().all() for parameter in learning.values())
    norms = [module for module in network.feature_backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 5
    assert all(module.training and module.num_batches_tracked == 1 for module in norms)
    assert all(module.weight.grad.abs().sum() > 0 for module in norms)


@every_kind
def test_what_is_drawn_is_all_that_a_loss_depends_on(kind: str) -> None:
    """Not on what was computed before: transformers keeps tables of positions, also those of inference mode."""
    size = (96, 160 + 32 * KINDS.index(kind))  # of no other test, so that inference mode makes the tables
    network = detector(kind, fixed_size=size)
    images, targets = photos(size, size), objects(2, 1, size=size)
    with torch.inference_mode():
        first = network.eval()(images)
    network.train()

    def losses() -> list[Tensor]:
        torch.manual_seed(7)
        network.zero_grad()
        found = network(images, targets)
        sum(found.values()).backward()
        return [*found.values(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]

    before = losses()
    network(photos((70, 128)), objects(3))
    assert all(torch.equal(one, other) for one, other in zip(before, losses(), strict=True))
    fresh = detector(kind, fixed_size=size)
    with torch.no_grad():
        again = fresh.eval()(images)
        assert all(torch.equal(one["boxes"], other["boxes"]) for one, other in zip(first, again, strict=True))


@every_kind
def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    networks = [detector(kind).train() for _ in range(2)]
    networks[1].set_grad_checkpointing(True)
    found = []
    for network in networks:
        torch.manual_seed(0)
        losses = network(photos((96, 128)), objects(2))
        sum(losses.values()).backward()
        found.append([*losses.values(), *(p.grad for p in network.feature_backbone.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# --- Sizes and padding ------------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """Stands in for a network: keeps its inputs, and finds the boxes that it was last told of."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.config = network.config
        self.model = nn.Module()
        self.inputs: dict[str, Any] = {}
        self.labels: list[dict[str, Tensor]] = []

    def forward(self, labels: list[dict[str, Tensor]] | None = None, **inputs: Tensor) -> Any:
        self.inputs = inputs
        if labels is not None:
            self.labels = labels
            names = ("loss_ce", "loss_bbox", "loss_giou")
            return SimpleNamespace(loss_dict={name: torch.tensor(1.0) for name in names})
        count = max(len(label["boxes"]) for label in self.labels)
        logits = torch.full((len(self.labels), count, CLASSES), -20.0)
        boxes = torch.full((len(self.labels), count, 4), 0.5)
        for i, label in enumerate(self.labels):
            n = len(label["boxes"])
            boxes[i, :n] = label["boxes"]
            logits[i, torch.arange(n), label["class_labels"]] = torch.arange(n, 0, -1.0)
        return SimpleNamespace(logits=logits, pred_boxes=boxes)


@every_kind
@pytest.mark.parametrize("fixed_size", [None, (64, 96)])
def test_boxes_go_in_and_come_out_again(kind: str, fixed_size: tuple[int, int] | None) -> None:
    """Images of other sizes, scaled and padded: a network that finds what it was told finds the targets' boxes."""
    network = detector(kind, min_size=64, max_size=120, fixed_size=fixed_size, score_threshold=0.5)
    recorder = Recorder(network.network)
    network.network = recorder
    images = photos((50, 100), (90, 60))
    targets = [objects(3, size=(50, 100))[0], objects(2, size=(90, 60), seed=3)[0]]
    kept = copy.deepcopy(targets)
    network.train()(images, targets)
    for one, other in zip(kept, targets, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    pixels = recorder.inputs["pixel_values"]
    if fixed_size is not None:
        assert pixels.shape == (2, 3, 64, 96)
        units = [(50.0, 100.0), (90.0, 60.0)]
    else:  # short sides of 64: 60 x 120, because of the longest side, and 96 x 64, on 96 x 128
        assert pixels.shape == (2, 3, 96, 128)
        assert torch.equal(pixels[0, :, 60:], torch.zeros(3, 36, 128))
        assert torch.equal(pixels[1, :, :, 64:], torch.zeros(3, 96, 64))
        padded = [(96 / 60 * 50, 128 / 120 * 100), (96 / 96 * 90, 128 / 64 * 60)]
        units = [(50.0, 100.0), (90.0, 60.0)] if kind == "deformable-detr" else padded
    for label, target, (height, width) in zip(recorder.labels, targets, units, strict=True):
        relative = box_convert(target["boxes"], "xyxy", "cxcywh") / torch.tensor([width, height, width, height])
        torch.testing.assert_close(label["boxes"], relative)
        assert torch.equal(label["class_labels"], target["labels"] - 1)
    if kind == "deformable-detr":
        mask = recorder.inputs["pixel_mask"]
        filled = [(64, 96)] * 2 if fixed_size is not None else [(60, 120), (96, 64)]
        for one, (height, width) in zip(mask, filled, strict=True):
            assert one.sum() == height * width == one[:height, :width].sum()
    else:
        assert set(recorder.inputs) == {"pixel_values"}
    for found, target in zip(network.eval()(images), targets, strict=True):
        torch.testing.assert_close(found["boxes"], target["boxes"])
        assert torch.equal(found["labels"], target["labels"])
        assert (found["scores"].diff() <= 0).all()


@every_kind
def test_images_of_any_shape(kind: str) -> None:
    network = detector(kind, min_size=(64, 96), max_size=160).eval()
    sizes = [(480, 640), (31, 200), (133, 80)]
    with torch.no_grad():
        found = network(photos(*sizes))
    for one, (height, width) in zip(found, sizes, strict=True):
        assert one["boxes"].shape == (len(one["scores"]), 4)
        assert one["labels"].dtype == torch.int64
        assert one["boxes"].min() >= 0
        assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()


# --- Detections -------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("share", [1, 0.5])
def test_detections_are_those_of_the_library_s_processor(kind: str, share: float) -> None:
    """All of them, and those above the median score."""
    network = detector(kind, fixed_size=(96, 128), detections_per_image=12).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # so that scores and boxes differ
        for name, parameter in network.network.named_parameters():
            if "_embed" in name and not name.startswith("model.backbone"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    images = photos((200, 150), (40, 300))
    sizes = [(200, 150), (40, 300)]
    threshold = 0.0
    with torch.no_grad():
        if share < 1:
            threshold = float(torch.cat([one["scores"] for one in network(images)]).median())
            network.score_threshold = threshold
        found = network(images)
        batch, _ = network.transform(images)
        mask = torch.ones(2, 96, 128, dtype=torch.long)
        outputs = network.network(pixel_values=batch.tensors, pixel_mask=mask)
    if kind == "deformable-detr":
        expected = hf.DeformableDetrImageProcessor().post_process_object_detection(
            outputs, threshold=threshold, target_sizes=sizes, top_k=12
        )
    else:
        expected = hf.RTDetrImageProcessor().post_process_object_detection(
            outputs, threshold=threshold, target_sizes=sizes
        )
    assert sum(len(one["scores"]) for one in expected) == (24 if share == 1 else 12)
    for one, other, (height, width) in zip(found, expected, sizes, strict=True):
        assert torch.equal(one["scores"], other["scores"])
        assert torch.equal(one["labels"], other["labels"] + 1)
        limits = torch.tensor([width, height, width, height], dtype=torch.float32)
        torch.testing.assert_close(one["boxes"], other["boxes"].clamp(min=0).minimum(limits), rtol=1e-5, atol=1e-3)


@every_kind
def test_fewer_detections_are_the_best_ones(kind: str) -> None:
    networks = [detector(kind, detections_per_image=count).eval() for count in (5, 1000)]
    with torch.no_grad():
        few, all_of_them = (network(photos((96, 128)))[0] for network in networks)
    assert len(all_of_them["scores"]) == 12 * CLASSES
    assert (all_of_them["scores"].diff() <= 0).all()
    assert all(torch.equal(few[key], all_of_them[key][:5]) for key in few)


@every_kind
def test_evaluation_is_exact_in_mixed_precision(kind: str) -> None:
    network = detector(kind).eval()
    with torch.no_grad():
        plain = network(photos((96, 128)))[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = network(photos((96, 128)))[0]
    assert all(torch.equal(plain[key], mixed[key]) for key in plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = network.train()(photos((96, 128)), objects(2))
    assert all(loss.isfinite() for loss in losses.values())


# --- A network like others --------------------------------------------------------------------------------------------


@every_kind
def test_the_backbone_is_the_one_given(kind: str) -> None:
    own = backbone("resnet18")
    before = copy.deepcopy(own.state_dict())
    network = detector(kind, on=own)
    assert network.feature_backbone is own
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert all(loss.isfinite() for loss in network.train()(photos((96, 128)), objects(2)).values())


@every_kind
def test_layer_decay(kind: str) -> None:
    network = detector(kind)
    depth = network.group_matcher()
    depths = {name: depth(name) for name, _ in network.named_parameters()}
    inside = f"{network.backbone_name}.model."
    assert depths[f"{inside}stem.conv1.weight"] == 0
    later = depths[f"{inside}stages.3.attention.blocks.0.window.attn.qkv.weight"]
    assert 0 < depths[f"{inside}stages.1.blocks.0.conv1.weight"] < later
    head = {depth for name, depth in depths.items() if not name.startswith(inside)}
    assert head == {max(depths.values())}
    assert all(depth < max(head) for name, depth in depths.items() if name.startswith(inside))
    optimiser = timm.optim.create_optimizer_v2(network, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    scales = {group["lr_scale"] for group in optimiser.param_groups}
    assert max(scales) == 1
    assert len(scales) == len(set(depths.values()))
    exempt = network.no_weight_decay()
    assert exempt
    assert exempt <= set(depths)


@every_kind
def test_checkpoint(kind: str) -> None:
    """A state dict says all, also of weights that layers share."""
    network, other = detector(kind).eval(), detector(kind, seed=1).eval()
    images = photos((96, 128))
    with torch.no_grad():
        expected = network(images)[0]
        assert not torch.equal(other(images)[0]["scores"], expected["scores"])
        other.load_state_dict({name: value.clone() for name, value in network.state_dict().items()})
        assert all(torch.equal(value, expected[key]) for key, value in other(images)[0].items())
        assert all(torch.equal(value, expected[key]) for key, value in copy.deepcopy(other)(images)[0].items())


@every_kind
def test_first_weights_let_signals_through(kind: str) -> None:
    """What goes from one part of a network to the next is of the order of 1."""
    network = detector(kind).train()
    projections = (
        network.network.model.input_proj if kind == "deformable-detr" else network.network.model.decoder_input_proj
    )
    scales: list[float] = []
    for part in projections:
        part.register_forward_hook(lambda module, inputs, output: scales.append(float(output.detach().std())))
    network(photos((96, 128), (96, 128)), objects(2, 1))
    assert len(scales) == len(projections) >= 3
    assert all(0.1 < scale < 10 for scale in scales)


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("rt-detr", {"options": {"num_querys": 3}}, "did you mean num_queries"),
        ("rt-detr", {"options": {"freeze_backbone_batch_norms": True}}, "freeze_backbone_batch_norms"),
        ("d-fine", {"options": {"decoder_layers": 1}}, "decoder_layers=1"),
        ("deformable-detr", {"options": {"two_stage": True}}, "two_stage=True"),
        ("deformable-detr", {"options": {"d_model": "wide"}}, "d_model"),
        ("rt-detr", {"fixed_size": 16}, "fixed_size=16"),
        ("rt-detr", {"fixed_size": [64, 64, 3]}, "fixed_size"),
    ],
)
def test_bad_options(kind: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        detector(kind, **more)


def test_bad_networks() -> None:
    sizes: dict[str, Any] = {"min_size": 64, "max_size": 96, **COLOURS}
    with pytest.raises(ValueError, match="kind='detr' is unknown; there is rt-detr, d-fine, deformable-detr"):
        create_detr("detr", backbone(), 3, **sizes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"strides \[8, 16, 32\], not \[4, 8, 16, 32\]"):
        create_detr("rt-detr", create_backbone("fastervit_0", options=TRAINED), 3, **sizes)
    with pytest.raises(ValueError, match="num_classes=0"):
        create_detr("rt-detr", backbone(), 0, **sizes)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else found(name))
    with pytest.raises(ValueError, match=r"pip install 'openfastervit\[detection\]'"):
        detector("rt-detr")


def test_bad_batches() -> None:
    network = detector("rt-detr").train()
    images, targets = photos((96, 128)), objects(2)
    with pytest.raises(ValueError, match="images is empty"):
        network([], [])
    with pytest.raises(ValueError, match="targets=None"):
        network(images)
    with pytest.raises(ValueError, match="1 images and 2 targets"):
        network(images, targets * 2)
    flat = {**targets[0], "boxes": torch.tensor([[1.0, 2, 3, 4], [5, 6, 5, 9]])}
    with pytest.raises(ValueError, match=r"targets\[0\]: the box \[5.0, 6.0, 5.0, 9.0\] has no area"):
        network(images, [flat])
    nowhere = {**targets[0], "boxes": torch.tensor([[1.0, 2, 3, 4], [5, 6, float("inf"), 9]])}
    with pytest.raises(ValueError, match="inf"):
        network(images, [nowhere])
    for label in (0, CLASSES + 1):
        with pytest.raises(ValueError, match=f"the label {label} is not from 1 to {CLASSES}"):
            network(images, [{**targets[0], "labels": torch.tensor([1, label])}])
    with pytest.raises(ValueError, match="2 labels; it must be"):
        network(images, [{**targets[0], "boxes": torch.ones(3, 4)}])


def test_more_queries_than_cells() -> None:
    network = detector("d-fine", options={"num_queries": 40}, fixed_size=32).eval()
    with pytest.raises(ValueError, match="num_queries=40 are more than the 21 cells"):
        network(photos((96, 128)))
