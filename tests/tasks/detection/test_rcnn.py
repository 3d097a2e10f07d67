"""R-CNNs on tiny backbones, against torchvision's own built by hand."""

from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.roi_heads import paste_masks_in_image

from openfastervit.models.features import Backbone
from openfastervit.tasks.detection.rcnn import KINDS, RCNN, Pyramid, create_rcnn
from tests.networks import tiny

CLASSES = 3
SMALL: dict[str, Any] = {
    "min_size": (96, 128),
    "max_size": 192,
    "fpn_channels": 8,
    "representation": 16,
    "mask_channels": 8,
    "anchor_sizes": (8, 16, 32, 64, 128),
}


def backbone(**options: Any) -> Backbone:
    return Backbone(tiny("fastervit_0", **{"dim": 8, **options}))


def detector(kind: Any = "cascade-mask-rcnn", **options: Any) -> RCNN:
    body = backbone()
    return create_rcnn(kind, body, CLASSES, **{**SMALL, **options})


def photos(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def target(image: Tensor, count: int) -> dict[str, Tensor]:
    height, width = image.shape[-2:]
    left, top = torch.arange(count) * 0.2 * width, torch.arange(count) * 0.1 * height
    boxes = torch.stack([left, top, left + 0.4 * width, top + 0.5 * height], dim=1)
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    for mask, (x, y, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y:bottom, x : (x + right) // 2] = 1
    return {"boxes": boxes, "labels": torch.arange(count) % CLASSES + 1, "masks": masks}


def scene(*counts: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images = photos((96, 128), (150, 100))[: len(counts)]
    return images, [target(image, count) for image, count in zip(images, counts, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (0, 0), (0,)])
def test_every_parameter_of_the_heads_learns(kind, counts):
    model = detector(kind)
    losses = model(*scene(*counts))
    expected = {"loss_objectness", "loss_rpn_box_reg"}
    stages = ("_1", "_2", "_3") if "cascade" in kind else ("",)
    expected |= {f"{name}{stage}" for name in ("loss_classifier", "loss_box_reg") for stage in stages}
    expected |= {"loss_mask"} if "mask" in kind else set()
    assert losses.keys() == expected
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    lacking = [name for name, each in model.named_parameters() if each.grad is None]
    assert lacking == []
    assert all(each.grad.isfinite().all() for each in model.parameters())
    assert model.backbone.body.model.stem.conv1.weight.grad.abs().sum() > 0


def test_it_learns_from_photographs_of_usual_sizes():
    model = detector(min_size=(480,), max_size=800)
    images = photos((480, 640), (333, 500), (640, 427))
    losses = model(images, [target(image, count) for image, count in zip(images, (4, 0, 2), strict=True)])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_shape(kind):
    model = detector(kind, min_size=(800,), max_size=1333).eval()
    sizes = [(480, 640), (800, 1333), (1333, 800)]
    with torch.no_grad():
        for size in sizes:
            (found,) = model(photos(size))
            height, width = size
            boxes = found["boxes"]
            assert len(boxes) > 0
            assert boxes.min() >= 0
            assert boxes[:, 2].max() <= width + 1e-3
            assert boxes[:, 3].max() <= height + 1e-3
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert (found["scores"].diff() <= 0).all()
            assert found["labels"].dtype == torch.int64
            assert set(found["labels"].tolist()) <= {1, 2, 3}
            assert ("masks" in found) == ("mask" in kind)
            if "masks" in found:
                assert found["masks"].shape == (len(boxes), 1, *size)
                assert 0 <= found["masks"].min() <= found["masks"].max() <= 1


OPTIONS = {
    "mean": (0.4, 0.5, 0.6),
    "std": (0.3, 0.2, 0.1),
    "anchor_sizes": (8, 16, 32, 64, 128),
    "aspect_ratios": (0.6, 1.5),
    "box_samples": 40,
    "score_threshold": 0.2,
    "nms_threshold": 0.3,
    "detections_per_image": 25,
}
BY_HAND = {
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.3, 0.2, 0.1],
    "rpn_anchor_generator": AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((0.6, 1.5),) * 5),
    "box_batch_size_per_image": 40,
    "box_score_thresh": 0.2,
    "box_nms_thresh": 0.3,
    "box_detections_per_img": 25,
}


@pytest.mark.parametrize(("kind", "torchvisions"), [("mask-rcnn", MaskRCNN), ("faster-rcnn", FasterRCNN)])
@pytest.mark.parametrize(("options", "by_hand"), [({}, {}), (OPTIONS, BY_HAND)])
def test_plain_kinds_are_torchvisions(kind, torchvisions, options, by_hand):
    sizes = {"min_size": (96, 128), "max_size": 150}
    ours = create_rcnn(kind, backbone(), CLASSES, fpn_channels=8, **sizes, **options)
    theirs = torchvisions(Pyramid(backbone(), 8), CLASSES + 1, **sizes, **by_hand)
    theirs.load_state_dict(ours.state_dict())
    images, targets = scene(3, 2)
    torch.manual_seed(4)
    losses = ours(images, targets)
    torch.manual_seed(4)
    torch.testing.assert_close(losses, theirs(images, targets), rtol=0, atol=0)
    with torch.no_grad():
        found, expected = ours.eval()(images[:1]), theirs.eval()(images[:1])
    assert len(expected[0]["boxes"]) > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "count"), list(zip(KINDS, (3, 3, 1, 1), strict=True)))
def test_options_reach_every_stage(kind, count):
    model = detector(kind, **OPTIONS)
    transform, anchors = model.transform, model.rpn.anchor_generator
    assert (transform.image_mean, transform.image_std) == (BY_HAND["image_mean"], BY_HAND["image_std"])
    assert (transform.min_size, transform.max_size) == ((96, 128), 192)
    assert (anchors.sizes, anchors.aspect_ratios) == (((8,), (16,), (32,), (64,), (128,)), ((0.6, 1.5),) * 5)
    stages = getattr(model.roi_heads, "stages", [model.roi_heads])
    assert len(stages) == count
    for stage in stages:
        assert (stage.score_thresh, stage.nms_thresh, stage.detections_per_img) == (0.2, 0.3, 25)
        assert stage.fg_bg_sampler.batch_size_per_image == 40
        assert stage.box_head.fc7.out_features == SMALL["representation"]


def test_masks_are_pasted_as_torchvision_pastes_them():
    model = detector().eval()
    small: list[dict[str, Tensor]] = []
    model.roi_heads.register_forward_hook(lambda _, __, outputs: small.extend(dict(each) for each in outputs[0]))
    images = photos((96, 128), (150, 100))
    with torch.no_grad():
        found = model(images)
    for image, each, before in zip(images, found, small, strict=True):
        size = tuple(image.shape[-2:])
        assert len(each["masks"]) > 0
        assert before["masks"].shape[1:] == (1, 28, 28)
        torch.testing.assert_close(
            each["masks"], paste_masks_in_image(before["masks"], each["boxes"], size), rtol=0, atol=0
        )


def test_a_batch_is_its_images():
    model = detector(min_size=(96,)).eval()
    images = photos((96, 128), (96, 128))
    with torch.no_grad():
        together, alone = model(images), [model([image])[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_training_draws_the_short_side_of_each_image():
    model = detector(min_size=(64, 96, 128), max_size=500)
    seen: list[tuple[int, int]] = []
    model.rpn.register_forward_hook(lambda _, args, __: seen.extend(args[0].image_sizes))
    images, targets = photos(*[(100, 150)] * 12), [target(torch.zeros(3, 100, 150), 1)] * 12
    model(images, targets)
    assert {min(size) for size in seen} == {64, 96, 128}
    seen.clear()
    model.eval()(images[:2])
    assert {min(size) for size in seen} == {128}


def test_the_first_image_does_not_decide_on_the_strides():
    """torchvision guesses them from it: here 38 pixels that are padded to 64."""
    sizes = {"min_size": (128,), "max_size": 192}
    panorama, usual = photos((40, 200), (128, 160))
    first, second = detector(**sizes).eval(), detector(**sizes).eval()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        first([panorama])
        torch.testing.assert_close(first([usual]), second([usual]), rtol=0, atol=0)


def test_boxes_stay_exact_in_bfloat16():
    model = detector(min_size=(800,), max_size=1333).eval()
    proposals: list[Tensor] = []
    model.rpn.register_forward_hook(lambda _, __, outputs: proposals.extend(outputs[0]))
    images = photos((400, 660))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = model(images)
    for boxes in (proposals[0], found["boxes"] * 2):
        assert boxes.dtype == torch.float32
        far = boxes[boxes[:, 0] > 520]  # where bfloat16 counts in fours
        assert len(far) > 0
        assert (far.remainder(4) != 0).any()
    assert found["masks"].dtype == found["scores"].dtype == torch.float32


def test_layer_wise_rates():
    model = detector()
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.8)
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates: dict[str, float] = {}
    decays: dict[str, float] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rates[names[parameter]] = group["lr_scale"]
            decays[names[parameter]] = group["weight_decay"]
    assert rates.keys() == set(names.values())
    depth = len(set(model.feature_backbone.layers().values()))
    for name, rate in rates.items():
        if not name.startswith("backbone.body."):
            assert rate == 1, name
        elif name.startswith("backbone.body.model.stem."):
            assert rate == min(rates.values()) == pytest.approx(0.8**depth)
        else:
            assert 0.8**depth < rate < 1
    spared = model.no_weight_decay()
    assert spared
    assert spared < set(rates)
    assert {decays[name] for name in spared} == {0}
    assert decays["roi_heads.stages.2.box_head.fc6.weight"] == 0.1


def test_gradient_checkpointing_changes_nothing():
    model = detector("cascade-rcnn")
    images, targets = scene(3, 2)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        assert model.feature_backbone.model.grad_checkpointing == enable
        model.zero_grad()
        torch.manual_seed(4)
        sum(model(images, targets).values()).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_a_state_dict_is_all_that_a_network_knows():
    model = detector().train()
    model(*scene(3, 2))
    torch.manual_seed(99)
    other = create_rcnn("cascade-mask-rcnn", backbone(seed=7), CLASSES, **SMALL)
    other.load_state_dict(model.state_dict())
    images = photos((96, 128), (150, 100))
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(images), model.eval()(images), rtol=0, atol=0)


def test_the_seed_decides_on_the_first_weights():
    one, other = detector(), detector()
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


# --- What is refused


def spoiled(**changes: Any) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images, targets = scene(3, 2)
    for name, value in changes.items():
        targets[1][name] = value
    return images, targets


@pytest.mark.parametrize("training", [True, False])
def test_no_images(training):
    with pytest.raises(ValueError, match="images is empty"):
        detector().train(training)([], [])


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((96, 128), r"image 1 has shape \[96, 128\]"),
        ((3, 2, 4000), "image 1 of 4000x2 pixels"),
        ((3, 0, 10), "image 1 of 10x0 pixels"),
    ],
)
def test_images_of_no_use(shape, told):
    with pytest.raises(ValueError, match=told):
        detector().eval()([torch.rand(3, 96, 128), torch.rand(shape)])


def test_the_thinnest_image_that_is_taken():
    with torch.no_grad():
        (found,) = detector().eval()([torch.rand(3, 2, 300)])
    assert found["masks"].shape[-2:] == (2, 300)


def test_missing_targets():
    model = detector()
    images, targets = scene(3, 2)
    with pytest.raises(ValueError, match="targets of none of 2 images"):
        model(images)
    with pytest.raises(ValueError, match="targets of 1 of 2 images"):
        model(images, targets[:1])
    del targets[0]["masks"]
    with pytest.raises(ValueError, match="target 0 lacks masks"):
        model(images, targets)
    assert detector("cascade-rcnn")(images, targets)


BOXES = torch.tensor([[10.0, 10.0, 50.0, 60.0], [20.0, 30.0, 40.0, 50.0]])


def with_corner(column: int, value: float) -> Tensor:
    boxes = BOXES.clone()
    boxes[1, column] = value
    return boxes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"boxes": with_corner(2, 20.0)}, r"box \[20.0, 30.0, 20.0, 50.0\] has no area"),
        ({"boxes": with_corner(3, 29.0)}, "has no area"),
        ({"boxes": with_corner(0, float("nan"))}, "has no area, or no finite one"),
        ({"boxes": with_corner(2, float("inf"))}, "has no area, or no finite one"),
        ({"boxes": BOXES[:, :3]}, r"boxes of target 1 have shape \(2, 3\), not \(2, 4\)"),
        ({"boxes": BOXES[:1]}, r"labels of target 1 have shape \(2,\), not \(1,\)"),
        ({"boxes": BOXES.int()}, "take float32 boxes"),
        ({"labels": torch.tensor([1, 4])}, "label 4 is none of the classes 1 to 3"),
        ({"labels": torch.tensor([0, 1])}, "label 0 is none of the classes 1 to 3"),
        ({"labels": torch.tensor([1.0, 1.0])}, "int64 labels"),
        ({"masks": torch.zeros(2, 100, 150)}, r"masks of target 1 have shape \(2, 100, 150\), not \(2, 150, 100\)"),
    ],
)
def test_targets_of_no_use(changes, told):
    with pytest.raises(ValueError, match=told):
        detector()(*spoiled(**changes))


@pytest.mark.parametrize("kind", KINDS)
def test_slivers_give_finite_losses(kind):
    """A box that is hardly there has no overlap with any anchor."""
    model = detector(kind)
    losses = model(*spoiled(boxes=torch.tensor([[10.0, 10.0, 10.001, 60.0], [98.0, 148.0, 98.5, 148.0005]])))
    assert all(loss.isfinite() for loss in losses.values()), losses
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_boxes_that_reach_out_of_the_image_give_finite_losses():
    losses = detector()(*spoiled(boxes=torch.tensor([[-30.0, -5.0, 20.0, 60.0], [500.0, 500.0, 600.0, 600.0]])))
    assert all(loss.isfinite() for loss in losses.values()), losses


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "rcnn"}, "kind='rcnn' is none of cascade-mask-rcnn, cascade-rcnn, mask-rcnn, faster-rcnn"),
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
        ({"fpn_channels": 0}, "fpn_channels=0"),
        ({"representation": 0}, "representation=0"),
        ({"mask_channels": -1}, "mask_channels=-1"),
        ({"box_samples": 0}, "box_samples=0"),
        ({"detections_per_image": 0}, "detections_per_image=0"),
        ({"min_size": ()}, r"min_size=\(\) must be one short side or more"),
        ({"min_size": (0, 96)}, "min_size"),
        ({"max_size": 100}, "max_size=100 must be at least the largest of min_size, 128"),
        ({"mean": (0.5,)}, "mean=.* must have as many numbers as std"),
        ({"std": (0.2, 0.0, 0.2)}, "std=.* must be above 0"),
        ({"anchor_sizes": (32, 64)}, "anchor_sizes=.* must be 5 sides"),
        ({"anchor_sizes": (0, 8, 16, 32, 64)}, "anchor_sizes"),
        ({"aspect_ratios": ()}, "aspect_ratios"),
        ({"score_threshold": 1.0}, "score_threshold=1.0"),
        ({"nms_threshold": 0.0}, "nms_threshold=0.0"),
    ],
)
def test_options_out_of_range(options, told):
    given = {"kind": "mask-rcnn", "num_classes": CLASSES, **SMALL, **options}
    with pytest.raises(ValueError, match=told):
        create_rcnn(given.pop("kind"), backbone(), given.pop("num_classes"), **given)


def test_other_strides_are_refused():
    with pytest.raises(ValueError, match=r"strides \[8, 16, 32\]; an R-CNN takes those of \[4, 8, 16, 32\]"):
        create_rcnn("mask-rcnn", Backbone(tiny(dim=8), (8, 16, 32)), CLASSES)
