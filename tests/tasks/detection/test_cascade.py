"""The cascade's heads, against torchvision's RoIHeads and a second writing that goes box by box."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign, box_iou

from openfastervit.tasks.detection import cascade
from openfastervit.tasks.detection.cascade import STAGES, CascadeRoIHeads, Stage

CHANNELS, CLASSES, WIDTH = 6, 3, 12
SHAPES = [(96, 128), (128, 100)]


def pool(size: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=size, sampling_ratio=2)


def mask_parts(masks: bool) -> dict[str, Any]:
    if not masks:
        return {}
    return {
        "mask_roi_pool": pool(14),
        "mask_head": MaskRCNNHeads(CHANNELS, (8, 8), 1),
        "mask_predictor": MaskRCNNPredictor(8, 8, CLASSES + 1),
    }


def heads(stages: tuple[Stage, ...] = STAGES, *, masks: bool = True, **options: Any) -> CascadeRoIHeads:
    torch.manual_seed(0)
    made = CascadeRoIHeads(
        pool(7), CHANNELS, CLASSES, stages=stages, representation=WIDTH, **mask_parts(masks), **options
    )
    with torch.no_grad():
        for stage in made.stages:  # scores that differ, boxes that move
            stage.box_predictor.cls_score.weight.mul_(8)
            stage.box_predictor.bbox_pred.weight.mul_(8)
    return made


def torchvisions(ours: CascadeRoIHeads) -> RoIHeads:
    """torchvision's heads with the weights of our first stage, the same regression for every class."""
    theirs = RoIHeads(
        pool(7),
        TwoMLPHead(CHANNELS * 49, WIDTH),
        FastRCNNPredictor(WIDTH, CLASSES + 1),
        0.5,
        0.5,
        512,
        0.25,
        None,
        0.05,
        0.5,
        100,
        **mask_parts(ours.has_mask()),
    )
    first = ours.stages[0]
    theirs.box_head.load_state_dict(first.box_head.state_dict())
    theirs.box_predictor.cls_score.load_state_dict(first.box_predictor.cls_score.state_dict())
    with torch.no_grad():
        theirs.box_predictor.bbox_pred.weight.copy_(first.box_predictor.bbox_pred.weight.repeat(CLASSES + 1, 1))
        theirs.box_predictor.bbox_pred.bias.copy_(first.box_predictor.bbox_pred.bias.repeat(CLASSES + 1))
    if ours.has_mask():
        theirs.mask_head.load_state_dict(ours.mask_head.state_dict())
        theirs.mask_predictor.load_state_dict(ours.mask_predictor.state_dict())
    return theirs


def features(seed: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        str(i): torch.randn(2, CHANNELS, 128 // stride, 128 // stride, generator=generator).requires_grad_()
        for i, stride in enumerate((4, 8, 16, 32))
    }


def boxes_in(shape: tuple[int, int], count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    height, width = shape
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.6
    sides = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.35 + 4
    return torch.cat([corners, corners + sides], dim=1)


def target(shape: tuple[int, int], count: int, seed: int) -> dict[str, Tensor]:
    boxes = boxes_in(shape, count, seed)
    masks = torch.zeros(count, *shape, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left : (left + right) // 2] = 1
    return {"boxes": boxes, "labels": torch.arange(count) % CLASSES + 1, "masks": masks}


def scene(*counts: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Proposals, some of them near the objects, and targets of two images with so many objects."""
    targets = [target(shape, count, seed) for seed, (shape, count) in enumerate(zip(SHAPES, counts, strict=True))]
    proposals = []
    for seed, (shape, each) in enumerate(zip(SHAPES, targets, strict=True)):
        near = each["boxes"].repeat(12, 1)
        near = near + torch.randn(near.shape, generator=torch.Generator().manual_seed(seed)) * 4
        near = near[(near[:, 2:] - near[:, :2]).min(dim=1).values > 1]
        proposals.append(torch.cat([boxes_in(shape, 40, seed + 10), near]))
    return proposals, targets


def test_the_papers_stages():
    """As the paper's authors and MMDetection configure them: IoU, deviation of the regressions, weight of the loss."""
    published = [
        (0.5, (0.1, 0.1, 0.2, 0.2), 1),
        (0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
        (0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
    ]
    for stage, (iou, deviations, loss_weight) in zip(STAGES, published, strict=True):
        assert (stage.iou, stage.loss_weight) == (iou, loss_weight)
        assert stage.weights == pytest.approx([1 / each for each in deviations], rel=0.02)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (0, 0)])
def test_one_stage_learns_as_torchvision_does(masks, counts):
    ours = heads(STAGES[:1], masks=masks)
    theirs = torchvisions(ours)
    proposals, targets = scene(*counts)
    results = []
    for module in (ours, theirs):
        maps = features()
        torch.manual_seed(5)  # of the sampler
        detections, losses = module(maps, proposals, SHAPES, targets)
        sum(losses.values()).backward()
        assert detections == []
        results.append(({name.removesuffix("_1"): loss for name, loss in losses.items()}, maps))
    (our_losses, our_maps), (their_losses, their_maps) = results
    assert (
        our_losses.keys()
        == their_losses.keys()
        == {"loss_classifier", "loss_box_reg"} | ({"loss_mask"} if masks else set())
    )
    torch.testing.assert_close(our_losses, their_losses)
    for name, each in our_maps.items():
        torch.testing.assert_close(each.grad, their_maps[name].grad)
    # The one regression is all of torchvision's equal ones, so that its gradient is the sum of theirs.
    summed = theirs.box_predictor.bbox_pred.weight.grad.view(CLASSES + 1, 4, WIDTH).sum(0)
    torch.testing.assert_close(ours.stages[0].box_predictor.bbox_pred.weight.grad, summed)


@pytest.mark.parametrize("masks", [True, False])
def test_one_stage_detects_as_torchvision_does(masks):
    ours = heads(STAGES[:1], masks=masks).eval()
    theirs = torchvisions(ours).eval()
    proposals, _ = scene(3, 2)
    with torch.no_grad():
        found, losses = ours(features(), proposals, SHAPES)
        expected, _ = theirs(features(), proposals, SHAPES)
    assert losses == {}
    for one, other in zip(found, expected, strict=True):
        assert len(other["boxes"]) > 20
        assert one.keys() == other.keys()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# --- The second writing: one box after another, in Python's numbers


def decoded(delta: list[float], box: list[float], stage: Stage, shape: tuple[int, int]) -> list[float]:
    """R-CNN's regression (arXiv 1311.2524, appendix C), its exponent bounded as in Detectron, inside the image."""
    x, y, w, h = (value / weight for value, weight in zip(delta, stage.weights, strict=True))
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = box[0] + width / 2 + x * width, box[1] + height / 2 + y * height
    bound = math.log(1000 / 16)
    width, height = width * math.exp(min(w, bound)), height * math.exp(min(h, bound))
    corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return [min(max(each, 0.0), float(shape[1 - i % 2])) for i, each in enumerate(corners)]


def encoded(box: list[float], onto: list[float], stage: Stage) -> list[float]:
    width, height = box[2] - box[0], box[3] - box[1]
    moved = [
        ((onto[0] + onto[2]) / 2 - (box[0] + box[2]) / 2) / width,
        ((onto[1] + onto[3]) / 2 - (box[1] + box[3]) / 2) / height,
        math.log((onto[2] - onto[0]) / width),
        math.log((onto[3] - onto[1]) / height),
    ]
    return [value * weight for value, weight in zip(moved, stage.weights, strict=True)]


def overlap(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def judged(made: CascadeRoIHeads, number: int, maps: dict[str, Tensor], image: int, boxes: list[list[float]]) -> Any:
    """Probabilities and regressions of the boxes of one image."""
    stage: Any = made.stages[number]
    given = [torch.zeros(0, 4), torch.zeros(0, 4)]
    given[image] = torch.tensor(boxes)
    with torch.no_grad():
        logits, deltas = stage.box_predictor(stage.box_head(pool(7)(maps, given, SHAPES)))
    return logits, deltas.tolist()


@pytest.mark.parametrize(("threshold", "most"), [(0.2, 30), (0.3, 1000)])
def test_three_stages_detect_as_they_do_box_by_box(threshold, most):
    made = heads(score_threshold=threshold, nms_threshold=0.4, detections_per_image=most).eval()
    maps = features()
    proposals, _ = scene(3, 2)
    with torch.no_grad():
        found, _ = made(maps, proposals, SHAPES)
    for image, shape in enumerate(SHAPES):
        boxes = proposals[image].tolist()
        sums = torch.zeros(len(boxes), CLASSES + 1)
        for number, stage in enumerate(STAGES):
            logits, deltas = judged(made, number, maps, image, boxes)
            sums += logits.softmax(1)
            boxes = [decoded(delta, box, stage, shape) for delta, box in zip(deltas, boxes, strict=True)]
        scored = [
            (float(sums[i, label]) / 3, label, box)
            for i, box in enumerate(boxes)
            for label in range(1, CLASSES + 1)
            if float(sums[i, label]) / 3 > threshold and box[2] - box[0] >= 0.01 and box[3] - box[1] >= 0.01
        ]
        kept: list[tuple[float, int, list[float]]] = []
        for score, label, box in sorted(scored, reverse=True):
            if all(other != label or overlap(box, better) <= 0.4 for _, other, better in kept):
                kept.append((score, label, box))
        kept = kept[:most]
        assert len(kept) > 10
        torch.testing.assert_close(found[image]["scores"], torch.tensor([score for score, _, _ in kept]))
        assert found[image]["labels"].tolist() == [label for _, label, _ in kept]
        torch.testing.assert_close(
            found[image]["boxes"], torch.tensor([box for _, _, box in kept]), rtol=1e-4, atol=1e-3
        )
        given = [torch.zeros(0, 4), torch.zeros(0, 4)]
        given[image] = found[image]["boxes"]
        with torch.no_grad():
            drawn = made.mask_predictor(made.mask_head(pool(14)(maps, given, SHAPES))).sigmoid()
        for mask, label, all_classes in zip(found[image]["masks"], found[image]["labels"], drawn, strict=True):
            torch.testing.assert_close(mask[0], all_classes[label])


def test_the_second_stage_learns_from_what_the_first_makes_of_its_boxes():
    made = heads(masks=False, box_samples=1000, positive_fraction=1.0)  # all boxes: nothing is drawn
    maps = features()
    proposals, targets = scene(3, 0)
    _, losses = made(maps, proposals, SHAPES, targets)

    surprises, distance, count, told_apart = 0.0, 0.0, 0, 0
    for image, shape in enumerate(SHAPES):
        objects = targets[image]["boxes"].tolist()
        boxes = proposals[image].tolist() + objects
        _, deltas = judged(made, 0, maps, image, boxes)
        boxes = [decoded(delta, box, STAGES[0], shape) for delta, box in zip(deltas, boxes, strict=True)]
        boxes = [box for box in boxes if box[2] - box[0] >= 0.01 and box[3] - box[1] >= 0.01] + objects
        logits, deltas = judged(made, 1, maps, image, boxes)
        for box, scores, delta in zip(boxes, logits, deltas, strict=True):
            overlaps = [overlap(each, box) for each in objects]
            best = max(overlaps, default=0.0)
            told_apart += 0.5 <= best < 0.6
            label = 0
            if best >= 0.6:
                matched = overlaps.index(best)
                label = int(targets[image]["labels"][matched])
                for value, wanted in zip(delta, encoded(box, objects[matched], STAGES[1]), strict=True):
                    off = abs(value - wanted)
                    distance += off - 1 / 18 if off > 1 / 9 else off**2 * 4.5
            surprises -= float(scores.log_softmax(0)[label])
            count += 1
    assert told_apart > 0, "no box of this scene tells the stages' thresholds apart"
    assert losses["loss_classifier_2"].item() == pytest.approx(0.5 * surprises / count, rel=1e-4)
    assert losses["loss_box_reg_2"].item() == pytest.approx(0.5 * distance / count, rel=1e-4)


def test_every_stage_draws_its_own_sample(monkeypatch):
    sampled: list[list[Tensor]] = []
    inner = cascade.fastrcnn_loss
    monkeypatch.setattr(
        cascade, "fastrcnn_loss", lambda *given: sampled.append([each.clone() for each in given[2]]) or inner(*given)
    )
    proposals, targets = scene(3, 2)
    heads(masks=False, box_samples=16)(features(), proposals, SHAPES, targets)
    assert len(sampled) == 3
    for labels in sampled:
        assert [len(each) for each in labels] == [16, 16]
        assert all(1 <= int((each > 0).sum()) <= 4 for each in labels)


def test_the_mask_head_learns_from_the_first_stage():
    proposals, targets = scene(3, 2)
    three, one = heads(), heads(STAGES[:1])
    one.stages[0].load_state_dict(three.stages[0].state_dict())
    one.mask_head.load_state_dict(three.mask_head.state_dict())
    one.mask_predictor.load_state_dict(three.mask_predictor.state_dict())
    losses = []
    for module in (three, one):
        torch.manual_seed(5)
        losses.append(module(features(), proposals, SHAPES, targets)[1])
    assert losses[0]["loss_mask"] == losses[1]["loss_mask"] > 0
    assert losses[0]["loss_classifier_1"] == losses[1]["loss_classifier_1"]


def test_no_gradient_goes_through_the_boxes():
    made = heads(masks=False)
    proposals, targets = scene(3, 2)
    _, losses = made(features(), proposals, SHAPES, targets)
    (losses["loss_classifier_2"] + losses["loss_box_reg_3"]).backward()
    assert all(parameter.grad is None for parameter in made.stages[0].parameters())
    assert all(stage.box_head.fc6.weight.grad.abs().sum() > 0 for stage in list(made.stages)[1:])


def expect_gradients(module: nn.Module, losses: dict[str, Tensor]) -> None:
    assert all(loss.isfinite() for loss in losses.values()), losses
    module.zero_grad()
    sum(losses.values()).backward()
    lacking = [name for name, each in module.named_parameters() if each.grad is None or not each.grad.isfinite().all()]
    assert lacking == []


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (3, 2)])
def test_all_parameters_learn_whether_or_not_there_are_objects(counts):
    made = heads()
    proposals, targets = scene(*counts)
    _, losses = made(features(), proposals, SHAPES, targets)
    assert list(losses) == [
        *("loss_classifier_1", "loss_box_reg_1", "loss_mask"),
        *("loss_classifier_2", "loss_box_reg_2", "loss_classifier_3", "loss_box_reg_3"),
    ]
    assert (losses["loss_mask"] > 0) == (sum(counts) > 0)
    expect_gradients(made, losses)


def test_neither_objects_nor_proposals():
    made = heads()
    _, targets = scene(0, 0)
    _, losses = made(features(), [torch.zeros(0, 4)] * 2, SHAPES, targets)
    assert sum(losses.values()) == 0
    expect_gradients(made, losses)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_boxes_that_leave_the_image_are_dropped(counts):
    made = heads()
    with torch.no_grad():
        made.stages[0].box_predictor.bbox_pred.bias[0] = 1e5
    proposals, targets = scene(*counts)
    seen: list[int] = []
    made.stages[1].box_head.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    _, losses = made(features(), proposals, SHAPES, targets)
    assert seen == [sum(counts)]  # the objects themselves
    expect_gradients(made, losses)
    made.eval()
    with torch.no_grad():
        assert [len(each["boxes"]) for each in made(features(), proposals, SHAPES)[0]] == [0, 0]


def test_images_without_proposals():
    made = heads().eval()
    proposals, _ = scene(3, 2)
    with torch.no_grad():
        both, _ = made(features(), proposals, SHAPES)
        second, _ = made(features(), [torch.zeros(0, 4), proposals[1]], SHAPES)
        none, _ = made(features(), [torch.zeros(0, 4)] * 2, SHAPES)
    torch.testing.assert_close(second[1], both[1])
    for empty in (second[0], *none):
        shapes = {name: list(each.shape) for name, each in empty.items()}
        assert shapes == {"boxes": [0, 4], "labels": [0], "scores": [0], "masks": [0, 1, 28, 28]}


def test_detections_lie_inside_their_image_and_their_scores_fall():
    made = heads().eval()
    proposals, _ = scene(3, 2)
    with torch.no_grad():
        found, _ = made(features(), proposals, SHAPES)
    for each, (height, width) in zip(found, SHAPES, strict=True):
        boxes = each["boxes"]
        assert len(boxes) > 0
        assert boxes.min() >= 0
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        assert (each["scores"].diff() <= 0).all()
        for label in each["labels"].unique():
            overlaps = box_iou(*[boxes[each["labels"] == label]] * 2).fill_diagonal_(0)
            assert overlaps.max() <= 0.5


def test_a_copy_is_the_same():
    made = heads().eval()
    proposals, _ = scene(3, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            copy.deepcopy(made)(features(), proposals, SHAPES), made(features(), proposals, SHAPES), rtol=0, atol=0
        )


def test_the_probabilities_of_certain_classifiers_are_no_nan():
    made = heads(masks=False).eval()
    with torch.no_grad():
        for stage in made.stages:
            stage.box_predictor.cls_score.bias.copy_(torch.tensor([0.0, 500.0, 0.0, 0.0]))  # the others underflow to 0
        found, _ = made(features(), scene(1, 1)[0], SHAPES)
    for each in found:
        torch.testing.assert_close(each["scores"], torch.ones(len(each["scores"])))
        assert set(each["labels"].tolist()) == {1}


def test_targets_that_lack_masks_are_refused():
    proposals, targets = scene(1, 1)
    del targets[1]["masks"]
    with pytest.raises(ValueError, match="targets lack masks"):
        heads()(features(), proposals, SHAPES, targets)
    with pytest.raises(ValueError, match="targets should not be None"):
        heads()(features(), proposals, SHAPES)


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ((), "stages is empty"),
        ((Stage(0.0, (1, 1, 1, 1), 1),), "out of range"),
        ((Stage(0.5, (1, 0, 1, 1), 1),), "out of range"),
        ((Stage(0.5, (1, 1, 1, 1), -1),), "out of range"),
    ],
)
def test_stages_out_of_range_are_refused(stages, told):
    with pytest.raises(ValueError, match=told):
        heads(stages)
