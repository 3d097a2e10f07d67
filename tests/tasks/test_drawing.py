"""Pictures of boxes, masks and label maps: colours are where they belong, and words can be read."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from openfastervit.data.coco import CocoImages, find_coco
from openfastervit.tasks import drawing
from openfastervit.tasks.drawing import draw_detections, draw_labels, draw_targets, palette, tint
from openfastervit.tasks.palette import _lab, ink

GREY = (120, 130, 140)
CLASSES = ["cat", "dog", "cow"]


def grey(width=400, height=360):
    return Image.new("RGB", (width, height), GREY)


def detections(boxes, labels=None, scores=None, **more):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.ones(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    scores = torch.ones(len(boxes)) if scores is None else torch.tensor(scores)
    return {"boxes": boxes, "labels": labels, "scores": scores, **more}


def blend(below, above, opacity):
    return tuple(round((1 - opacity) * b + opacity * a) for b, a in zip(below, above, strict=True))


def colours_in(picture):
    return {colour for _, colour in picture.getcolors(1 << 20)}


# --- Colours


def test_lab_has_its_published_values():
    known = {
        (255, 255, 255): (100, 0, 0),
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 255, 0): (87.73, -86.18, 83.18),
        (0, 0, 255): (32.30, 79.19, -107.86),
        (0, 0, 0): (0, 0, 0),
    }
    np.testing.assert_allclose(_lab(np.array(list(known), dtype=float)), list(known.values()), atol=0.05)


def test_colours_differ_and_stay():
    colours = palette(150)
    assert len(set(colours)) == 150
    for count in (0, 1, 7, 80):
        assert palette(count) == colours[:count]
    assert min(math.dist(one, other) for one, other in itertools.combinations(colours[:20], 2)) > 60
    assert all(max(colour) - min(colour) > 40 for colour in colours)  # none is a grey
    assert len(palette(5000)) == 5000
    with pytest.raises(ValueError, match="count=-1"):
        palette(-1)


def test_words_can_be_read_on_every_colour():
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in palette(300):
        dark, light = sorted((luminance(colour), luminance(ink(colour))))
        assert (light + 0.05) / (dark + 0.05) > 3.5  # WCAG asks 3 of large text, 4.5 of small


# --- Detections


def test_boxes_have_their_classes_colours():
    image = grey()
    output = detections([[50, 60, 150, 200], [200, 100, 380, 300]], labels=[1, 3], scores=[0.9, 0.8])
    picture = draw_detections(image, output, CLASSES)
    assert picture.size == image.size
    assert colours_in(image) == {GREY}
    for (left, top, right, bottom), colour in zip(output["boxes"].tolist(), palette(3)[::2], strict=True):
        for x, y in ((left, 180), (right - 1, 180), (left + 60, bottom - 1), (right - 1, top)):
            assert picture.getpixel((int(x), int(y))) == colour
        assert picture.getpixel((int(left) + 30, 180)) == GREY  # inside
    assert palette(3)[1] not in colours_in(picture)
    assert draw_detections(image, output, CLASSES).tobytes() == picture.tobytes()


def test_only_detections_above_the_threshold():
    output = detections([[50, 60, 150, 200], [200, 100, 380, 300], [10, math.nan, 30, 40]], scores=[0.3, 0.6, 0.9])
    picture = draw_detections(grey(), output, CLASSES)
    alone = draw_detections(grey(), detections([[200, 100, 380, 300]], scores=[0.6]), CLASSES)
    assert picture.tobytes() == alone.tobytes()
    assert colours_in(draw_detections(grey(), output, CLASSES, threshold=0.95)) == {GREY}
    assert colours_in(draw_detections(grey(), detections([]), CLASSES)) == {GREY}
    output["scores"][:] = math.nan
    assert colours_in(draw_detections(grey(), output, CLASSES, threshold=0)) == {GREY}


def test_masks_are_laid_over_the_image():
    masks = torch.zeros(2, 1, 360, 400)
    masks[0, :, 220:300, 100:200] = 0.9
    masks[0, :, 300:340] = 0.4
    masks[1, :, 20:40] = 1  # of a detection that is not drawn
    output = detections([[90, 100, 210, 310], [0, 0, 9, 9]], labels=[2, 1], scores=[0.9, 0.1], masks=masks)
    for shape in ((2, 1, 360, 400), (2, 360, 400)):
        picture = draw_detections(grey(), {**output, "masks": masks.reshape(shape)}, CLASSES)
        colour = palette(3)[1]
        assert picture.getpixel((150, 250)) == blend(GREY, colour, 0.45)
        assert picture.getpixel((100, 250)) == colour  # the outline
        for x, y in ((95, 250), (150, 330), (150, 30), (150, 215)):
            assert picture.getpixel((x, y)) == GREY


def test_the_object_in_front_is_seen():
    masks = torch.zeros(2, 360, 400)
    masks[0, 150:170, 150:170] = 1
    masks[1] = 1
    output = detections([[150, 150, 170, 170], [0, 0, 400, 360]], labels=[1, 2], masks=masks)
    for order in ([0, 1], [1, 0]):
        shown = {name: value[order] for name, value in output.items()}
        picture = draw_detections(grey(), shown, CLASSES)
        assert picture.getpixel((160, 160)) == blend(blend(GREY, palette(3)[1], 0.45), palette(3)[0], 0.45)


@pytest.mark.parametrize(("size", "expected"), [((40, 30), (320, 240)), ((1, 1), (320, 320)), ((319, 20), (638, 40))])
def test_small_images_are_enlarged(size, expected):
    masks = torch.ones(1, 1, size[1], size[0])
    picture = draw_detections(grey(*size), detections([[0, 0, *size]], masks=masks), CLASSES)
    assert picture.size == expected
    labels = np.zeros(size[::-1], dtype=np.uint8)
    assert draw_labels(grey(*size), labels, CLASSES, legend=False).size == expected


side = st.floats(-50, 500) | st.floats(-1e30, 1e30)


@given(st.lists(st.tuples(side, side, side, side), max_size=6), st.integers(1, 500), st.integers(1, 500))
def test_any_boxes_can_be_drawn(corners, width, height):
    boxes = [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners]
    draw_detections(grey(width, height), detections(boxes), ["a name\nthat is much too long for any label 🐈"])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), unique=True, max_size=12))
def test_labels_stay_inside_and_apart_where_there_is_room(cells):
    placed, boxes = [], [[130 * x + 10, 130 * y + 10, 130 * x + 70, 130 * y + 70] for x, y in cells]
    for box in boxes:
        spot = drawing._free_spot(box, 85, 16, (1300, 1300), placed, boxes)
        assert spot[0] >= 0
        assert spot[1] >= 0
        assert spot[2] <= 1300
        assert spot[3] <= 1300
        for other in placed:
            assert min(spot[2], other[2]) <= max(spot[0], other[0]) or min(spot[3], other[3]) <= max(spot[1], other[1])
        # Beside its own box.
        assert spot[1] < box[3] + 2 * 16
        assert spot[3] > box[1] - 2 * 16
        placed.append(spot)


def test_labels_of_one_place_do_not_hide_each_other():
    output = detections([[100, 100, 300, 300]] * 2, labels=[1, 2], scores=[0.9, 0.8])
    picture = np.asarray(draw_detections(grey(), output, CLASSES))
    surest = np.asarray(draw_detections(grey(), detections([[100, 100, 300, 300]], scores=[0.9]), CLASSES))
    chip = np.zeros(picture.shape[:2], dtype=bool)
    chip[80:99, 100:150] = True
    assert (surest[chip] != GREY).any(axis=1).mean() > 0.5  # there is a label
    assert np.array_equal(picture[chip], surest[chip])


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (detections([[0, 0, 9, 9]], labels=[4]), "label 4 is none of the 3 classes"),
        (detections([[0, 0, 9, 9]], labels=[0]), "label 0 is none of the 3 classes"),
        (detections([[0, 0, 9, 9]], masks=torch.ones(1, 1, 400, 360)), "height and width, 360 and 400"),
    ],
)
def test_detections_that_do_not_fit(output, message):
    with pytest.raises(ValueError, match=message):
        draw_detections(grey(), output, CLASSES)


def test_targets_on_real_photographs(sample_data):
    source = CocoImages(*find_coco(sample_data / "coco-tiny", "val"), masks=True)
    for index in (0, 11):
        image = transforms.to_dtype(transforms.pil_to_tensor(source.open(index)), torch.float32, scale=True)
        target = source.target(index)
        tile = draw_targets(image, target, source.classes, side=384)
        assert tile.shape == (3, 384, 384)
        assert tile.dtype == torch.float32
        assert 0 <= tile.min() < tile.max() <= 1
        nothing = {name: target[name][:0] for name in ("boxes", "labels", "masks")}
        assert not torch.equal(draw_targets(image, nothing, source.classes, side=384), tile)
    assert (tile[:, 0] == 1).all() or (tile[:, :, 0] == 1).all()  # the margin


# --- Label maps


def test_classes_are_laid_over_the_image():
    labels = np.zeros((360, 400), dtype=np.uint8)
    labels[100:200] = 2
    labels[200:] = 255
    picture = draw_labels(grey(), labels, CLASSES, legend=False, opacity=0.4)
    assert picture.size == (400, 360)
    rows = [picture.getpixel((7, y)) for y in (50, 150, 250)]
    assert rows == [blend(GREY, palette(3)[0], 0.4), blend(GREY, palette(3)[2], 0.4), GREY]
    assert colours_in(picture) == set(rows)
    for same in (labels.astype(np.int64), torch.from_numpy(labels), labels.astype(np.uint16)):
        assert draw_labels(grey(), same, CLASSES, legend=False, opacity=0.4).tobytes() == picture.tobytes()
    assert colours_in(draw_labels(grey(), labels, CLASSES, legend=False, opacity=0)) == {GREY}
    own = draw_labels(grey(), labels, CLASSES, colours=[(1, 2, 3), (4, 5, 6), (7, 8, 9)], legend=False, opacity=1)
    assert colours_in(own) == {(1, 2, 3), (7, 8, 9), GREY}


def test_the_legend_tells_what_occurs():
    labels = np.zeros((360, 400), dtype=np.uint8)
    labels[100:] = 2
    picture = draw_labels(grey(), labels, CLASSES)
    assert picture.width == 400
    legend = picture.crop((0, 360, *picture.size))
    found = colours_in(legend)
    assert {palette(3)[0], palette(3)[2]} <= found
    assert palette(3)[1] not in found
    pixels = np.asarray(legend)
    # The largest comes first.
    places = [np.argwhere((pixels == colour).all(axis=-1))[:, 1].min() for colour in (palette(3)[2], palette(3)[0])]
    assert places[0] < places[1]
    assert draw_labels(grey(), np.full((360, 400), 255), CLASSES).size == (400, 360)


def test_a_legend_of_many_classes_is_whole():
    labels = np.arange(150, dtype=np.int64).repeat(960).reshape(360, 400)
    picture = draw_labels(grey(), labels, [f"a class with the long name {place}" for place in range(150)])
    assert set(palette(150)) <= colours_in(picture.crop((0, 360, *picture.size)))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.zeros((400, 360)), {}, r"\[400, 360\] are not of the image's height and width, 360 and 400"),
        (np.full((360, 400), 3), {}, "label 3 is none of the 3 classes"),
        (np.full((360, 400), -1), {}, "label -1 is none of the 3 classes"),
        (np.zeros((360, 400), int), {"opacity": 1.5}, "opacity=1.5"),
        (np.zeros((360, 400), int), {"colours": [(1, 2, 3)]}, "3 classes need as many colours, not 1"),
    ],
)
def test_label_maps_that_do_not_fit(labels, options, message):
    with pytest.raises(ValueError, match=message):
        draw_labels(grey(), labels, CLASSES, **options)


def test_tint_is_the_same_for_tensors():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (330, 340, 3), dtype=np.uint8)
    labels = generator.choice([0, 1, 2, 255], (330, 340))
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    expected = np.asarray(draw_labels(Image.fromarray(pixels), labels, CLASSES, legend=False))
    tinted = tint(image, torch.from_numpy(labels), 3)
    torch.testing.assert_close(tinted, torch.from_numpy(expected.copy()).permute(2, 0, 1).float() / 255)
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
