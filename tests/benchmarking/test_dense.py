"""Backbones in a head: what the heads are given, what a step does, what its row says."""

import csv
import io
import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from openfastervit.benchmarking import dense_inputs, dense_step
from openfastervit.benchmarking.cases import to_csv
from openfastervit.benchmarking.dense import DENSE_COLUMNS, MODES, TASK_HEADS, DenseCase, DenseRow, plan_dense
from openfastervit.benchmarking.dense_inputs import FAR, NEAR, OBJECTS
from openfastervit.benchmarking.measure import Plan, measure
from openfastervit.benchmarking.subject import Machine
from openfastervit.tasks.detection.networks import HEADS

SIZE = (96, 130)
POCKET = {"dim": 8, "stem_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4)}
RCNN = {"representation": 8, "fpn_channels": 8, "mask_channels": 4, "box_samples": 64}
DETR = {"d_model": 32, "num_queries": 20}
OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("cascade-mask-rcnn", "cascade-rcnn", "mask-rcnn", "faster-rcnn"), RCNN),
    **dict.fromkeys(("rt-detr", "d-fine", "deformable-detr"), DETR),
    "upernet": {"hidden_size": 8},
    "mask2former": {"hidden_dim": 16, "num_queries": 5},
}
MACHINE = Machine(threads=1, warm_up_seconds=0.01)
PLAN = Plan(repeats=2, seconds=0.01, tail=False)


def case(backbone: str = "test_resnet", **changes: Any) -> DenseCase:
    head = changes.get("head", "cascade-mask-rcnn")
    values: dict[str, Any] = {
        "task": "segmentation" if head in TASK_HEADS["segmentation"] else "detection",
        "architecture": "fastervit_0" if backbone == "pocket" else backbone,
        "peer": backbone != "pocket",
        "options": POCKET if backbone == "pocket" else {},
        "head": head,
        "mode": "inference",
        "precision": "fp32",
        "batch_size": 1,
        "height": SIZE[0],
        "width": SIZE[1],
        "head_options": OPTIONS[head],
    }
    return DenseCase(backbone=backbone, **{**values, **changes})


def facts_of(one: DenseCase) -> dict[str, Any]:
    with one.open(MACHINE) as called:
        called.call()
        called.call()
        return dict(called.facts())


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def iou(a: list[float], b: list[float]) -> float:
    """Of two boxes, by the definition."""
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return across * down / (sum(areas) - across * down)


@pytest.mark.parametrize("size", [SIZE, (800, 1333), (64, 64)])
def test_objects_lie_within_the_image_and_fill_their_boxes(size: tuple[int, int]) -> None:
    found = dense_inputs.objects(size, 80)
    height, width = size
    assert found.boxes.shape == (OBJECTS, 4)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([width, height, width, height])).all()
    assert found.masks.shape == (OBJECTS, *size)
    # torchvision gives the first and the last pixel; an ellipse may miss the pixel that its edge lies in.
    edges = masks_to_boxes(found.masks) + torch.tensor([0, 0, 1, 1])
    assert (edges - found.boxes).abs().max() <= 1
    assert found.masks.sum(0).max() == 1, "apart"
    assert sorted(set(found.labels.tolist())) == list(range(1, 9))
    assert set(dense_inputs.objects(size, 3).labels.tolist()) == {1, 2, 3}


@pytest.mark.parametrize("size", [SIZE, (800, 1333)])
def test_a_quarter_of_the_proposals_are_near_an_object_and_the_others_far_from_all(size: tuple[int, int]) -> None:
    objects = dense_inputs.objects(size, 80).boxes.tolist()
    boxes = dense_inputs.proposals(size, 200, torch.Generator().manual_seed(0))
    best = [max(iou(box, found) for found in objects) for box in boxes.tolist()]
    assert len(best) == 200
    assert min(best[:50]) >= NEAR
    assert max(best[50:]) <= FAR + 1e-4
    assert (boxes[50:] >= 0).all()
    assert (boxes[50:, 2] <= size[1]).all()
    assert (boxes[50:, 3] <= size[0]).all()
    assert torch.equal(boxes, dense_inputs.proposals(size, 200, torch.Generator().manual_seed(0)))


def test_a_label_map_shows_the_objects() -> None:
    labels = dense_inputs.label_map((64, 128), 150)
    masks = dense_inputs.objects((64, 128), 150).masks
    assert labels.unique().tolist() == list(range(9))
    assert [(labels == k).sum().item() for k in range(1, 9)] == masks.sum((1, 2)).tolist()
    assert dense_inputs.label_map((64, 128), 2).unique().tolist() == [0, 1]


@pytest.mark.parametrize("backbone", ["test_resnet", "pocket"])
@pytest.mark.parametrize("head", ["cascade-mask-rcnn", "mask-rcnn", "faster-rcnn"])
def test_heads_have_as_much_to_do_on_every_backbone(backbone: str, head: str) -> None:
    """torchvision's limits: 1000 boxes proposed and 100 found; in training a sample, a quarter of it of objects."""
    stages = 3 if head.startswith("cascade") else 1
    work = facts_of(case(backbone, head=head))
    assert (work["box_head_boxes"], work["detections"]) == (1000 * stages, 100)
    learnt = facts_of(case(backbone, head=head, mode="training", batch_size=2))
    assert learnt["box_head_boxes"] == 2 * 64 * stages
    assert "detections" not in learnt
    if HEADS[head].masks:  # type: ignore[index]
        assert (work["mask_head_boxes"], learnt["mask_head_boxes"]) == (100, 2 * 16)
    else:
        assert "mask_head_boxes" not in work
    assert (work["backbone_height"], work["backbone_width"]) == (96, 160), "130 is padded to a multiple of 32"


@pytest.mark.parametrize("head", ["cascade-mask-rcnn", "mask-rcnn"])
def test_stages_have_the_very_boxes_that_were_given(monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    """As random weights would move them, they would lie on other levels of the pyramid for each backbone.

    And all of them are found as one class, and no other: so many come to the suppression of doubles.
    """
    seen: list[Tensor] = []
    found: list[dict[str, Tensor]] = []
    build = dense_step._network

    def watched(one: DenseCase) -> nn.Module:
        network: Any = build(one)
        stages = getattr(network.roi_heads, "stages", [network.roi_heads])
        # All stages have one pool.
        stages[0].box_roi_pool.register_forward_pre_hook(lambda module, args: seen.append(args[1][0].clone()))
        network.register_forward_hook(lambda module, args, output: found.extend(output))
        return network

    monkeypatch.setattr(dense_step, "_network", watched)
    with case(head=head).open(MACHINE) as called:
        called.call()
    given = dense_inputs.proposals(SIZE, 1000, torch.Generator().manual_seed(dense_step.SEED))
    assert len(seen) == (3 if head.startswith("cascade") else 1)
    for boxes in seen:
        torch.testing.assert_close(boxes, given, rtol=0, atol=1e-3)
    assert found[0]["labels"].tolist() == [1] * 100
    torch.testing.assert_close(found[0]["scores"], torch.full((100,), dense_step.FOUND))


def test_without_given_boxes_random_weights_find_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_step, "_give_boxes", lambda network, size: None)
    assert facts_of(case(head="mask-rcnn"))["detections"] == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", ["mask-rcnn", "rt-detr"])
def test_the_network_scales_nothing(monkeypatch: pytest.MonkeyPatch, head: str, mode: str) -> None:
    """What comes to the backbone is the image, normalised, with zeros to its right and below."""
    seen: list[Tensor] = []
    build = dense_step._network

    def watched(one: DenseCase) -> nn.Module:
        network = build(one)
        network.feature_backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
        return network

    monkeypatch.setattr(dense_step, "_network", watched)
    with case(head=head, mode=mode).open(MACHINE) as called:
        called.call()
    image = dense_inputs.noise(SIZE, torch.Generator().manual_seed(dense_step.SEED))
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (dense_step.IMAGENET_DEFAULT_MEAN, dense_step.IMAGENET_DEFAULT_STD)
    )
    assert seen[0].shape == (1, 3, 96, 160)
    torch.testing.assert_close(seen[0][0, :, :96, :130], (image - mean) / std)
    assert not seen[0][..., 130:].any()


@pytest.mark.parametrize("head", OPTIONS)
def test_a_step_of_training_is_a_whole_one_and_changes_nothing(monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    """All parameters have gradients and the optimiser's two moments; none has moved, so the next step is alike."""
    optimizers: list[torch.optim.AdamW] = []
    without: list[int] = []

    class Watched(torch.optim.AdamW):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.first = [parameter.detach().clone() for parameter in self.param_groups[0]["params"]]
            optimizers.append(self)

        def step(self, *args: Any) -> None:  # type: ignore[override]
            without.append(sum(parameter.grad is None for parameter in self.param_groups[0]["params"]))
            assert all(p.grad is None or p.grad.isfinite().all() for p in self.param_groups[0]["params"])
            super().step(*args)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    one = case(head=head, mode="training", batch_size=2, height=96, width=128)
    with one.open(MACHINE) as called:
        called.call()
        called.call()
    (optimizer,) = optimizers
    parameters = optimizer.param_groups[0]["params"]
    assert len(without) == 2
    assert without[0] <= 0.1 * len(parameters), "a few embeddings of DETRs have no part in a loss"
    if head in HEADS and HEADS[head].strides == (4, 8, 16, 32):  # type: ignore[index]
        assert without == [0, 0]
    assert all(parameter.grad is None for parameter in parameters)
    assert len(optimizer.state) == len(parameters) - without[0]
    assert all(torch.equal(now, then) for now, then in zip(parameters, optimizer.first, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_is_autocast(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    kinds: set[torch.dtype] = set()
    build = dense_step._network

    def watched(one: DenseCase) -> nn.Module:
        network = build(one)
        for module in network.feature_backbone.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda module, args, output: kinds.add(output.dtype))
        return network

    monkeypatch.setattr(dense_step, "_network", watched)
    for precision, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        kinds.clear()
        with case(mode=mode, precision=precision).open(MACHINE) as called:
            called.call()
        assert kinds == {kind}


def rows_of(cases: list[DenseCase], machine: Machine = MACHINE) -> dict[tuple[str, str], DenseRow]:
    rows = {row.key: row for rows in measure(cases, machine, PLAN) for row in rows}
    return {(row.backbone, row.mode): row for row in rows.values()}


def test_rows_hold_what_was_measured() -> None:
    cases = [case(backbone, head="mask-rcnn", mode=mode) for mode in MODES for backbone in ("pocket", "test_resnet")]
    rows = rows_of(cases)
    assert {row.status for row in rows.values()} == {"ok"}
    for row in rows.values():
        assert (row.repeats, row.threads) == (2, 1)
        assert row.images_per_second_q1 <= row.images_per_second <= row.images_per_second_q3
        assert row.images_per_second == pytest.approx(1 / row.seconds_p50, rel=0.8)
        assert 10 < row.memory_before_mb < row.peak_memory_mb < 3000
        assert row.parameters_m > row.backbone_parameters_m > 0
    assert [rows[key].block for key in rows] == [1, 1, 2, 2], "what is compared takes turns: a mode is a block"
    (line,) = csv.DictReader(io.StringIO(to_csv([rows["pocket", "training"]], DENSE_COLUMNS)))
    assert line["backbone"] == "pocket"
    assert line["peer"] == "false"
    assert line["detections"] == ""
    assert float(line["peak_memory_mb"]) == pytest.approx(rows["pocket", "training"].peak_memory_mb, rel=1e-4)


def test_what_cannot_run_is_a_row_and_the_rest_go_on() -> None:
    """A backbone without a pyramid, a head's option that there is not, a batch of one, images of 2 GB."""
    upernet = {"head": "upernet", "height": 64, "width": 64}
    for odd, status in (
        (case("test_vit", head="mask-rcnn"), "unsupported: "),
        (case("odd", architecture="test_resnet", head_options={"wings": 2}), "unsupported: "),
        (case("odd", architecture="test_resnet", mode="training", **upernet), "failed: ValueError: a batch of one"),
        (case("odd", architecture="test_resnet", head="rt-detr", precision="bf16"), "unsupported: rt-detr predicts in"),
    ):
        (row,) = rows_of([odd]).values()
        assert row.status.startswith(status), row.status
        assert row.images_per_second is None
    limited = Machine(threads=1, warm_up_seconds=0.01, memory_limit=2 * 10**9)
    huge = case("huge", architecture="test_resnet", height=12_800, width=12_800)
    rows = rows_of([huge, case("small", architecture="test_resnet")], limited)
    assert rows["huge", "inference"].status.startswith("out of memory: ")
    assert rows["small", "inference"].status == "ok"


def test_the_plan_holds_every_combination_with_its_kin_beside_it() -> None:
    networks = [("fastervit_0", "fastervit_0", False), ("resnet50", "resnet50", True)]
    cases = plan_dense("detection", networks, "mask-rcnn", MODES, ["fp32", "bf16"], [1, 2], (64, 96), {})
    assert len({one.key for one in cases}) == len(cases) == 16
    kin = [one.kin for one in cases]
    assert all(kin[i] == kin[i + 1] for i in range(0, 16, 2))
    assert len(set(kin)) == 8
    assert {one.backbone for one in cases[:2]} == {"fastervit_0", "resnet50"}
