"""Graphs of detectors find what the detectors find."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, batched_nms

from openfastervit.inference.box_operations import kept_by_nms, pooled
from openfastervit.inference.dense_comparison import matched
from openfastervit.inference.detector_graph import DetectorGraph, detector_graph
from openfastervit.tasks.detection.rcnn import KINDS
from tests.inference.lively_dense import CLASSES, COLOURS, detr, image, plain, rcnn

# Height and width of what a graph takes and of the image in it, and below which score detections are dropped.
CASES = [((96, 128), (96, 128), 0.0), ((128, 96), (115, 69), 0.3), ((160, 224), (147, 224), 0.0)]
DETRS = ("rt-detr", "d-fine", "deformable-detr")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@torch.no_grad()
def found_by(graph: DetectorGraph, images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    return dict(zip(graph.outputs, graph(images, torch.tensor(size)), strict=True))


def check(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    count = int(found["count"])
    assert count == len(expected["scores"])
    torch.testing.assert_close(found["scores"][:count], expected["scores"], rtol=0, atol=1e-5)
    assert (found["scores"].diff() <= 0).all()
    rows, columns = matched({name: value[:count] for name, value in found.items() if name != "count"}, expected)
    assert len(rows) == count  # in another order where two score the same but for rounding
    torch.testing.assert_close(found["boxes"][rows], expected["boxes"][columns], rtol=0, atol=1e-3)
    if "masks" in expected:
        torch.testing.assert_close(found["masks"][rows], expected["masks"][columns][:, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_rcnn(kind: Any) -> None:
    for size, inner, score_threshold in CASES:
        model = rcnn(kind, score_threshold=score_threshold)
        images = image(size, inner)
        expected = plain(model, images, inner)
        assert 20 < len(expected["scores"]) <= 100
        assert len(expected["labels"].unique()) > 1
        check(found_by(detector_graph(model, size), images, inner), expected)


@pytest.mark.parametrize("kind", ["cascade-rcnn", "faster-rcnn"])
def test_few_places_and_many(kind: Any) -> None:
    """Fewer detections than there is room for, and more than there is."""
    size = (96, 128)
    images = image(size, size)
    for options in ({"score_threshold": 0.99999}, {"detections_per_image": 7}):
        model = rcnn(kind, **options)
        found = found_by(detector_graph(model, size), images, size)
        check(found, plain(model, images, size))
        assert len(found["boxes"]) == options.get("detections_per_image", 100)
    model = rcnn(kind, proposals=30)
    found = found_by(detector_graph(model, size), images, size)
    assert len(found["scores"]) == 30 * len(CLASSES)
    empty = found["labels"] == 0
    assert empty.any()  # of 30 boxes some are suppressed in some class
    assert (found["scores"][empty] == 0).all()
    assert int(found["count"]) <= int((~empty).sum())


@pytest.mark.parametrize("kind", DETRS)
def test_a_detection_transformer(kind: Any) -> None:
    """Beside its own forward, on images that need no scaling: alone, and in a batch with a larger one."""
    model = detr(kind)
    mean, std = (torch.tensor(COLOURS[name]).view(3, 1, 1) for name in ("mean", "std"))
    for size, inner in (((96, 128), (96, 128)), ((128, 128), (96, 128))):
        pixels = image(inner, inner)[0]
        batch = [pixels * std + mean]
        if size != inner:  # whose short side is scaled to 96 already
            batch.append(torch.zeros(3, 128, 96))
        with torch.no_grad():
            expected = model(batch)[0]
        found = found_by(detector_graph(model, size), image(size, inner), inner)
        assert len(expected["scores"]) == 36
        check(found, expected)


def test_a_detr_says_when_images_are_too_small() -> None:
    model = detr("rt-detr")
    model.config.num_queries = 22
    with pytest.raises(ValueError, match="num_queries=22 are more than the 21 cells"):
        detector_graph(model, (32, 32))


# --- Operations -------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(groups=st.integers(1, 4), places=st.integers(1, 60), most=st.integers(1, 70), seed=st.integers(0, 10_000))
def test_suppression_is_torchvisions(groups: int, places: int, most: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(groups, places, 2, generator=generator) * 50
    boxes = torch.cat([boxes, boxes + torch.rand(groups, places, 2, generator=generator) * 40 + 1], -1)
    scores = torch.rand(groups, places, generator=generator)
    absent = torch.rand(groups, places, generator=generator) < 0.2
    kept = kept_by_nms(boxes, scores.masked_fill(absent, -1), 0.5, most)
    assert kept.shape == scores.shape
    numbers = torch.arange(groups)[:, None].expand(-1, places)[~absent]
    expected = batched_nms(boxes[~absent], scores[~absent], numbers, 0.5)
    for group in range(groups):
        best = expected[numbers[expected] == group][:most]
        wanted = scores[~absent][best].sort().values
        assert torch.equal(scores[group][kept[group]].sort().values, wanted)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_pooling_is_torchvisions(seed: int) -> None:
    """Boxes of all sizes, thin ones at the border among them."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(1, 2, 96 // stride, 128 // stride, generator=generator) for stride in (4, 8, 16, 32)]
    corners = torch.rand(30, 2, 2, generator=generator) * torch.tensor([128.0, 96.0])
    boxes = torch.cat([corners.min(1).values, corners.max(1).values], 1)
    boxes[::3, 1] = boxes[::3, 3] - 1.5
    boxes[::6, 3] = 96.0
    pool = MultiScaleRoIAlign(list("0123"), 7, 2, canonical_scale=48)
    expected = pool(dict(zip("0123", maps, strict=True)), [boxes], [(96, 128)])
    levels = pool.map_levels([boxes])
    assert len(levels.unique()) > 1
    assert torch.equal(pooled(maps, boxes, levels, [float(scale) for scale in pool.scales], 7, 7, 2), expected)
