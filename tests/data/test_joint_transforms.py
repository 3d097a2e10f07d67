import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from openfastervit.data.joint_transforms import (
    DetectionEvaluation,
    DetectionTraining,
    SegmentationEvaluation,
    SegmentationTraining,
)

PLAIN: dict[str, Any] = {"color_jitter": 0.0, "mean": [0.0] * 3, "std": [1 / 255] * 3}
"""What comes out are the pixels, from 0 to 255."""
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def labels_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blocks of labels from 1 to 200, and 255."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice([*range(1, 201), 255], (height // 3 + 1, width // 3 + 1)).astype(np.uint8)
    return np.kron(blocks, np.ones((3, 3), dtype=np.uint8))[:height, :width]


def encoded(labels: np.ndarray) -> Image.Image:
    """An image whose red is the label, and green its opposite."""
    return Image.fromarray(np.stack([labels, 255 - labels, labels // 2], axis=-1).astype(np.uint8))


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- Segmentation


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**30),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    crop=st.tuples(st.integers(1, 48), st.integers(1, 48)),
    low=st.floats(0.2, 2.5),
    wider=st.floats(0, 1.5),
    hflip=st.sampled_from([0.0, 0.5, 1.0]),
    share=st.sampled_from([0.3, 0.75, 1.0]),
    size=st.none() | st.integers(1, 40),
)
def test_labels_stay_with_their_pixels(
    seed: int,
    height: int,
    width: int,
    crop: tuple[int, int],
    low: float,
    wider: float,
    hflip: float,
    share: float,
    size: int | None,
):
    transform = SegmentationTraining(
        crop,
        scale=(low, low + wider),
        size=size,
        hflip=hflip,
        max_category_share=share,
        interpolation=InterpolationMode.NEAREST_EXACT,
        **PLAIN,
    )
    torch.manual_seed(seed)
    given_labels = labels_of(height, width, seed)
    image, labels = transform(encoded(given_labels), given_labels)
    assert image.shape == (3, *crop)
    assert labels.shape == crop
    assert (image.dtype, labels.dtype) == (torch.float32, torch.int64)
    red = image[0].round().long()
    padded = red == 0  # no label is 0
    assert (labels[padded] == 255).all()
    assert torch.equal(red[~padded], labels[~padded])
    assert torch.equal(image[1].round().long()[~padded], 255 - labels[~padded])
    # Padding is below and on the right alone.
    rows, columns = int((~padded).any(1).sum()), int((~padded).any(0).sum())
    assert not padded[:rows, :columns].any()
    assert padded[rows:].all()
    assert padded[:, columns:].all()
    if size is None:
        assert rows <= max(1, round(height * (low + wider)))
        assert rows >= min(crop[0], max(1, round(height * low)))


def test_labels_lie_where_the_smoothed_image_has_its_edges():
    """Scaled to a third, an edge must not be moved by part of a pixel: the nearest pixel is the one in the middle."""
    transform = SegmentationTraining((16, 16), scale=(1 / 3, 1 / 3), hflip=0, max_category_share=1, **PLAIN)
    for edge in range(1, 48):
        labels = np.zeros((48, 48), dtype=np.uint8)
        labels[:, edge:] = 1
        for turned in (labels, labels.T):
            image, found = transform(Image.fromarray(turned * 255).convert("RGB"), turned)
            assert torch.equal((image[0] > 127.5).long(), found)


def test_crops_come_from_everywhere():
    labels = np.arange(1, 17, dtype=np.uint8).reshape(4, 4)
    transform = SegmentationTraining((2, 3), scale=(1, 1), hflip=0, **PLAIN)
    corners = {int(transform(encoded(labels), labels)[1][0, 0]) for _ in range(200)}
    assert corners == {1, 2, 5, 6, 9, 10}


def test_scales_come_from_the_whole_range():
    labels = labels_of(20, 20)
    transform = SegmentationTraining((60, 60), scale=(0.5, 2), hflip=0, **PLAIN)
    sides = sorted(int((transform(encoded(labels), labels)[0][0] > 0).any(0).sum()) for _ in range(300))
    assert sides[0] == 10
    assert sides[-1] == 40
    assert 22 < sides[150] < 28  # evenly drawn: the median is 25


def test_a_size_is_the_short_side_before_scaling():
    labels = labels_of(40, 60)
    for scale, expected in ((1.0, (20, 30)), (1.5, (30, 45))):
        transform = SegmentationTraining((64, 64), scale=(scale, scale), size=20, hflip=0, **PLAIN)
        image, _ = transform(encoded(labels), labels)
        assert (int((image[1] > 0).any(1).sum()), int((image[1] > 0).any(0).sum())) == expected


@settings(max_examples=30)
@given(height=st.integers(1, 20), width=st.integers(1, 20))
def test_a_flip_is_numpys_and_twice_nothing(height: int, width: int):
    labels = labels_of(height, width, 1)
    flip = SegmentationTraining((height, width), scale=(1, 1), hflip=1, **PLAIN)
    image, flipped = flip(noise(height, width), labels)
    assert np.array_equal(flipped.numpy(), labels[:, ::-1])
    assert np.array_equal(image.round().permute(1, 2, 0).numpy(), np.asarray(noise(height, width))[:, ::-1])
    again = Image.fromarray(image.round().byte().permute(1, 2, 0).numpy())
    image, labels_again = flip(again, flipped.numpy())
    assert np.array_equal(labels_again.numpy(), labels)
    assert np.array_equal(image.round().permute(1, 2, 0).numpy(), np.asarray(noise(height, width)))


def test_half_of_the_images_are_flipped():
    labels = labels_of(6, 6)
    transform = SegmentationTraining((6, 6), scale=(1, 1), hflip=0.5, **PLAIN)
    flipped = sum(np.array_equal(transform(encoded(labels), labels)[1].numpy(), labels[:, ::-1]) for _ in range(200))
    assert 70 < flipped < 130


def share_of_largest(labels: Tensor) -> float:
    """Of what is not ignored; 1 where nothing is."""
    counts = np.unique_counts(labels[labels != 255].numpy()).counts
    return counts.max() / counts.sum() if counts.size else 1.0


def test_crops_full_of_one_class_are_drawn_again():
    labels = np.zeros((8, 64), dtype=np.uint8)
    labels[:4, 32:] = 1
    labels[6:, 40:] = 255  # does not count
    counts = {}
    for share in (0.75, 1.0):
        transform = SegmentationTraining((8, 8), scale=(1, 1), max_category_share=share, **PLAIN)
        counts[share] = sum(share_of_largest(transform(encoded(labels), labels)[1]) < 0.75 for _ in range(200))
    assert counts[0.75] >= 195  # about half of the places will do: one in a thousand fails ten times
    assert 60 < counts[1.0] < 140


def test_ignored_pixels_are_no_class_beside_another():
    labels = np.zeros((8, 64), dtype=np.uint8)
    labels[4:] = 255
    labels[:4, 48:], labels[4:, 48:] = 1, 2
    transform = SegmentationTraining((8, 8), scale=(1, 1), **PLAIN)
    good = sum(share_of_largest(transform(encoded(labels), labels)[1]) < 0.75 for _ in range(200))
    assert good >= 170  # a quarter of the places will do: six in a hundred fail ten times


@pytest.mark.parametrize("value", [3, 255])
def test_an_image_of_one_class_is_cropped_all_the_same(value: int):
    labels = np.full((20, 20), value, dtype=np.uint8)
    assert (SegmentationTraining((8, 8), scale=(1, 1))(noise(20, 20), labels)[1] == value).all()


def test_images_are_normalised_and_padded_with_their_mean():
    labels = labels_of(5, 7)
    image, _ = SegmentationTraining((6, 9), scale=(1, 1), hflip=0, color_jitter=0, mean=MEAN, std=STD)(
        noise(5, 7), labels
    )
    expected = (np.asarray(noise(5, 7)) / 255 - MEAN) / STD
    np.testing.assert_allclose(image[:, :5, :7].permute(1, 2, 0), expected, atol=1e-5)
    assert (image[:, 5:] == 0).all()
    assert (image[:, :, 7:] == 0).all()


def test_colours_change_and_labels_do_not():
    labels = labels_of(20, 20)
    plain = SegmentationTraining((20, 20), scale=(1, 1), hflip=0, color_jitter=0)
    strong = SegmentationTraining((20, 20), scale=(1, 1), hflip=0, color_jitter=0.8)
    first, second = (strong(noise(20, 20), labels) for _ in range(2))
    assert np.array_equal(first[1], labels)
    assert not torch.allclose(first[0], second[0], atol=0.05)
    assert torch.equal(plain(noise(20, 20), labels)[0], plain(noise(20, 20), labels)[0])


@pytest.mark.parametrize("short", [None, 10, 45])
def test_evaluation_scales_the_image_and_leaves_labels(short: int | None):
    labels = labels_of(20, 31)
    photograph = noise(4, 5).resize((31, 20), Image.Resampling.BICUBIC)
    transform = SegmentationEvaluation(short, mean=MEAN, std=STD)
    image, found = transform(photograph, labels)
    assert np.array_equal(found.numpy(), labels)
    assert found.dtype == torch.int64
    factor = 1 if short is None else short / 20
    assert image.shape == (3, round(20 * factor), round(31 * factor))
    expected = photograph.resize((image.shape[2], image.shape[1]), Image.Resampling.BILINEAR)
    expected = (np.asarray(expected) / 255 - MEAN) / STD
    np.testing.assert_allclose(image.permute(1, 2, 0), expected, atol=2 / 255 / min(STD))  # Pillow rounds otherwise
    assert torch.equal(transform.image(photograph), image)


# --- Detection


def rectangles(height: int, width: int, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Objects whose masks fill their boxes."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((count, 4), dtype=np.float32)
    masks = np.zeros((count, height, width), dtype=np.uint8)
    for i in range(count):
        left, top = rng.integers(0, width), rng.integers(0, height)
        right, bottom = rng.integers(left + 1, width + 1), rng.integers(top + 1, height + 1)
        boxes[i] = left, top, right, bottom
        masks[i, top:bottom, left:right] = 1
    return {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.arange(1, count + 1),
        "masks": torch.from_numpy(masks),
    }


def extents(masks: Tensor) -> list[list[int]]:
    """Left, top, right and bottom of each mask, by looking."""
    found = []
    for mask in masks.numpy():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        found.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return found


@settings(max_examples=40)
@given(height=st.integers(1, 30), width=st.integers(1, 30), count=st.integers(0, 4), seed=st.integers(0, 99))
def test_boxes_and_masks_are_flipped_with_the_image(height: int, width: int, count: int, seed: int):
    photograph, target = noise(height, width, seed), rectangles(height, width, count, seed)
    kept = {name: value.clone() for name, value in target.items()}
    flip = DetectionTraining(hflip=1)
    image, found = flip(photograph, target)
    assert all(torch.equal(kept[name], target[name]) for name in kept)
    assert (image.dtype, type(image)) == (torch.float32, Tensor)
    assert {type(value) for value in found.values()} == {Tensor}
    np.testing.assert_allclose(image.permute(1, 2, 0), np.asarray(photograph)[:, ::-1] / 255, atol=1e-6)
    assert np.array_equal(found["masks"].numpy(), target["masks"].numpy()[:, :, ::-1])
    assert found["boxes"].tolist() == extents(found["masks"])
    assert found["boxes"].shape == (count, 4)
    assert torch.equal(found["labels"], target["labels"])
    again = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
    image, found = flip(again, found)
    assert np.array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), np.asarray(photograph))
    assert all(torch.equal(kept[name], found[name]) for name in kept)


def test_boxes_that_end_within_pixels_are_flipped_exactly():
    target = {"boxes": torch.tensor([[1.25, 2.5, 7.75, 4.0]]), "labels": torch.tensor([3]), "image_id": 17}
    _, found = DetectionTraining(hflip=1)(noise(10, 20), target)
    assert found["boxes"].tolist() == [[12.25, 2.5, 18.75, 4.0]]
    assert found["image_id"] == 17
    _, found = DetectionTraining(hflip=0)(noise(10, 20), target)
    assert torch.equal(found["boxes"], target["boxes"])


@settings(max_examples=60)
@given(
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    count=st.integers(0, 5),
    seed=st.integers(0, 2**20),
    canvas=st.tuples(st.integers(8, 48), st.integers(8, 48)),
    low=st.floats(0.1, 1.5),
    wider=st.floats(0, 1),
)
def test_large_scale_jitter_fits_boxes_to_what_is_left_of_masks(
    height: int, width: int, count: int, seed: int, canvas: tuple[int, int], low: float, wider: float
):
    target = rectangles(height, width, count, seed)
    target |= {"iscrowd": target["labels"] % 2, "area": target["masks"].sum((1, 2)).float()}
    torch.manual_seed(seed)
    transform = DetectionTraining(scale_jitter=(low, low + wider), canvas=canvas)
    image, found = transform(noise(height, width, seed), target)
    assert image.shape == (3, *canvas)
    assert found["masks"].shape[1:] == canvas
    assert found["boxes"].shape == (len(found["labels"]), 4)
    assert found["boxes"].tolist() == extents(found["masks"])
    assert torch.equal(found["iscrowd"], found["labels"] % 2)
    assert found["area"].tolist() == found["masks"].sum((1, 2)).tolist()
    assert (found["boxes"].dtype, found["masks"].dtype) == (torch.float32, torch.uint8)


def objects_in_colours() -> tuple[Image.Image, dict[str, Tensor]]:
    """Six squares on black whose red tells their label."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    boxes = []
    for i in range(6):
        top, left = 4 + 20 * (i // 3), 4 + 20 * (i % 3)
        pixels[top : top + 12, left : left + 12] = 40 * (i + 1), 255, 255
        boxes.append([left, top, left + 12, top + 12])
    masks = np.stack([pixels[..., 0] == 40 * (i + 1) for i in range(6)]).astype(np.uint8)
    target = {"boxes": torch.tensor(boxes).float(), "labels": torch.arange(1, 7), "masks": torch.from_numpy(masks)}
    return Image.fromarray(pixels), target


@pytest.mark.parametrize("with_masks", [False, True])
def test_objects_keep_their_labels_and_places_under_large_scale_jitter(with_masks: bool):
    photograph, target = objects_in_colours()
    if not with_masks:
        del target["masks"]
    transform = DetectionTraining(scale_jitter=(0.5, 2.5), canvas=(50, 50))
    left_over = set()
    for _ in range(60):
        image, found = transform(photograph, target)
        left_over.add(len(found["labels"]))
        red = (image[0] * 255).round()
        for label, box in zip(found["labels"].tolist(), found["boxes"].tolist(), strict=True):
            assert min(box) >= 0
            assert max(box) <= 50
            left, top, right, bottom = box
            if min(right - left, bottom - top) < 4:  # a sliver has no colour of its own
                continue
            assert red[int((top + bottom) / 2), int((left + right) / 2)] == pytest.approx(40 * label, abs=25)
            # Just outside of the box it is dark: black between the squares, or padding.
            for x, y in ((left - 3, (top + bottom) / 2), ((left + right) / 2, bottom + 2)):
                if 0 <= x < 50 and 0 <= y < 50:
                    assert float(image[1, int(y), int(x)]) < 0.6
        assert len(set(found["labels"].tolist())) == len(found["labels"])
    assert max(left_over) == 6
    assert min(left_over) < 6  # some were cut away


def test_the_canvas_is_padded_with_gray():
    image, found = DetectionTraining(hflip=0, scale_jitter=(0.5, 0.5), canvas=(40, 40))(
        Image.new("RGB", (20, 20)), {"boxes": torch.tensor([[0.0, 0, 20, 20]]), "labels": torch.tensor([1])}
    )
    dark = image[0] == 0
    assert int(dark.sum()) == 400
    assert (image[0][~dark] == 128 / 255).all()
    assert found["boxes"].tolist() == extents(dark[None])


def test_images_without_objects_pass():
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    for extra in ({}, {"masks": torch.zeros(0, 10, 20, dtype=torch.uint8)}):
        for transform in (DetectionTraining(), DetectionTraining(scale_jitter=(0.5, 2), canvas=(16, 16))):
            image, found = transform(noise(10, 20), {**target, **extra})
            assert found["boxes"].shape == (0, 4)
            assert found["labels"].shape == (0,)
            assert found["labels"].dtype == torch.int64
            if extra:
                assert found["masks"].shape == (0, *image.shape[1:])


def test_evaluation_changes_nothing():
    target = {"image_id": 5}
    image, found = DetectionEvaluation()(noise(9, 8), target)
    assert found is target
    np.testing.assert_allclose(image.permute(1, 2, 0), np.asarray(noise(9, 8)) / 255, atol=1e-7)


# --- Both


TRANSFORMS: dict[str, Callable[[], Any]] = {
    "segmentation": lambda: SegmentationTraining((9, 9)),
    "detection": lambda: DetectionTraining(color_jitter=0.5, scale_jitter=(0.5, 2), canvas=(16, 16)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_all_follows_from_torchs_generator_in_another_process_too(name: str):
    transform = TRANSFORMS[name]()
    what: Any = labels_of(20, 20) if name == "segmentation" else rectangles(20, 20, 3)
    results = []
    for copy in (transform, pickle.loads(pickle.dumps(transform)), transform):
        torch.manual_seed(3)
        results.append(copy(noise(20, 20), what))
        random.seed(len(results))
        np.random.seed(len(results))
    torch.manual_seed(4)
    other = transform(noise(20, 20), what)
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
    assert not torch.equal(other[0], results[0][0])


def test_labels_and_masks_of_another_size_are_refused():
    for transform in (SegmentationTraining((8, 8)), SegmentationEvaluation()):
        with pytest.raises(ValueError, match=r"labels of shape \[10, 12\] do not fit an image of \[12, 10\]"):
            transform(noise(12, 10), labels_of(10, 12))
    with pytest.raises(ValueError, match=r"masks of shape \[2, 10, 12\] do not fit an image of \[12, 10\]"):
        DetectionTraining()(noise(12, 10), rectangles(10, 12, 2))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SegmentationTraining((0, 8)), r"crop=\(0, 8\)"),
        (lambda: SegmentationTraining((8, 8, 8)), "crop="),
        (lambda: SegmentationTraining((8, 8), scale=(2, 1)), r"scale=\(2, 1\)"),
        (lambda: SegmentationTraining((8, 8), scale=(0, 1)), r"scale=\(0, 1\)"),
        (lambda: SegmentationTraining((8, 8), size=0), "size=0"),
        (lambda: SegmentationTraining((8, 8), hflip=1.5), "hflip=1.5"),
        (lambda: SegmentationTraining((8, 8), color_jitter=-1), "color_jitter=-1"),
        (lambda: SegmentationTraining((8, 8), max_category_share=0), "max_category_share=0"),
        (lambda: SegmentationEvaluation(0), "size=0"),
        (lambda: DetectionTraining(hflip=-0.1), "hflip=-0.1"),
        (lambda: DetectionTraining(scale_jitter=(0.0, 2.0)), "scale_jitter="),
        (lambda: DetectionTraining(canvas=(0, 8)), "canvas="),
    ],
)
def test_settings_out_of_range_are_named(make: Callable[[], Any], told: str):
    with pytest.raises(ValueError, match=told):
        make()
