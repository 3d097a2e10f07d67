"""COCO's format: what is read is what pycocotools reads, and what is wrong in a file is named."""

import contextlib
import io
import itertools
import json
import math
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import ExifTags, Image
from pycocotools import mask as pycoco_mask
from pycocotools.coco import COCO

from openfastervit.data.coco import CocoImages, CocoPaths, find_annotations, find_coco, image_ids
from openfastervit.data.coco_annotations import read_annotations
from openfastervit.data.coco_masks import decode_mask, encode_mask, mask_problem, run_lengths
from openfastervit.data.images import ImageError

HEIGHT, WIDTH = 40, 60
SQUARE = [[10, 10, 30, 10, 30, 25, 10, 25]]
"""A polygon: columns 10 to 29, rows 10 to 24."""


def content(*annotations, **changes):
    """An annotation file of two images and two categories, whose first image has those annotations."""
    good = {"image_id": 7, "category_id": 3, "bbox": [10, 10, 20, 15], "segmentation": SQUARE, "area": 300}
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 2, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [{**good, "id": number, **given} for number, given in enumerate(annotations, start=1)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
        **changes,
    }


def written(folder: Path, given) -> Path:
    path = folder / "annotations.json"
    path.write_text(given if isinstance(given, str) else json.dumps(given))
    return path


def opened(folder: Path, given, **options) -> CocoImages:
    return CocoImages(written(folder, given), folder, **{"masks": True, **options})


def by_hand(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


# --- Where things are


@pytest.mark.parametrize(
    ("split", "json_file", "folder"),
    [
        ("train", "annotations/instances_train2017.json", "train2017"),
        ("train2017", "annotations/instances_train2017.json", "train2017"),
        ("val", "annotations/instances_val2014.json", "images/val2014"),
        ("val", "annotations/instances_val.json", "val"),
        ("val", "annotations/val.json", "val"),
        ("minival", "annotations/instances_minival2014.json", "minival2014"),
        ("pets", "annotations/pets.json", "pets"),
        ("train", "annotations/instances_train2017.json", "train"),
        ("train", "annotations/train.json", "images"),
        ("train", "train/_annotations.coco.json", "train"),
        ("val", "valid/_annotations.coco.json", "valid"),
        ("validation", "annotations/instances_val2017.json", "val2017"),
    ],
)
def test_layouts(tmp_path, split, json_file, folder):
    for file in (json_file, "annotations/captions_train2017.json", "annotations/person_keypoints_val2017.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert find_coco(tmp_path, split) == CocoPaths(tmp_path / json_file, tmp_path / folder)
    assert find_annotations(tmp_path, split) == tmp_path / json_file


def test_named_files_come_first(tmp_path):
    for folder in ("annotations", "train", "photos"):
        (tmp_path / folder).mkdir()
    mine = written(tmp_path, "{}")
    (tmp_path / "annotations" / "instances_train.json").write_text("{}")
    photos = tmp_path / "photos"
    assert find_coco(tmp_path, "train", images=photos).images == photos
    assert find_coco(None, "train", mine, photos) == CocoPaths(mine, photos)
    # The folder of one of COCO's files is found from that file, wherever the data is said to be.
    named = tmp_path / "annotations" / "instances_train.json"
    assert find_coco(photos, "train", annotations=named).images == tmp_path / "train"


def test_what_is_not_found_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        find_coco(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match=r"looked for annotations/instances_val\*.json.*_annotations.coco.json.*none"):
        find_coco(tmp_path, "val")
    (tmp_path / "annotations").mkdir()
    for year in (2014, 2017):
        (tmp_path / "annotations" / f"instances_train{year}.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no annotations of the split 'val'.*found .*instances_train2014.json"):
        find_coco(tmp_path, "val")
    with pytest.raises(ValueError, match="may be any of train2014, train2017; name one"):
        find_coco(tmp_path, "train")
    with pytest.raises(
        ValueError, match=r"no folder with the images of instances_train2017.json; looked for .*train2017"
    ):
        find_coco(tmp_path, "train2017")
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*x\.json"):
        find_coco(tmp_path, "train", annotations=tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match=r"no folder of images .*photos"):
        find_coco(tmp_path, "train2014", images=tmp_path / "photos")
    with pytest.raises(ValueError, match="name both"):
        find_coco(None, "train", annotations=tmp_path / "x.json")


def test_ids_of_images(tmp_path):
    coco = [Path("x/000000000139.jpg"), Path("x/000000000285.jpg")]
    assert image_ids(coco) == [139, 285]
    assert image_ids([*coco, Path("x/dog.jpg")]) == [1, 2, 3]
    assert image_ids([Path("x/1.jpg"), Path("y/1.jpg")]) == [1, 2]
    given = content()
    given["images"][0]["file_name"] = "below/a.png"
    annotations = written(tmp_path, given)
    assert image_ids([Path("x/b.png"), Path("x/below/a.png")], annotations) == [2, 7]
    with pytest.raises(ValueError, match=r"x/a.png is none of the 2 images"):
        image_ids([Path("x/a.png")], annotations)
    with pytest.raises(ValueError, match=r"both image 2"):
        image_ids([Path("x/b.png"), Path("y/b.png")], annotations)


# --- Reading, against pycocotools


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("crowds", [False, True])
def test_equal_to_pycocotools(sample_data, split, crowds):
    paths = find_coco(sample_data / "coco-tiny", split)
    source, coco = CocoImages(*paths, masks=True, crowds=crowds), by_hand(paths.annotations)
    assert source.problems == ()
    assert source.category_ids == tuple(sorted(coco.cats))
    assert source.classes == tuple(coco.cats[number]["name"] for number in source.category_ids)
    assert source.image_ids.tolist() == list(coco.imgs)
    seen = 0
    for index, image_id in enumerate(coco.imgs):
        expected = coco.loadAnns(coco.getAnnIds(imgIds=image_id, iscrowd=None if crowds else False))
        target, seen = source.target(index), seen + len(expected)
        image = coco.imgs[image_id]
        assert target["image_id"] == image_id
        assert source.name(index) == image["file_name"]
        masks = [coco.annToMask(annotation) for annotation in expected]
        assert target["masks"].shape == (len(expected), image["height"], image["width"])
        assert all(torch.equal(mine, torch.from_numpy(his)) for mine, his in zip(target["masks"], masks, strict=True))
        boxes = torch.tensor([annotation["bbox"] for annotation in expected], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(target["boxes"], boxes.float(), atol=0.02, rtol=0)  # some reach over the border
        assert [source.category_ids[label - 1] for label in target["labels"]] == [a["category_id"] for a in expected]
        assert target["iscrowd"].tolist() == [annotation["iscrowd"] for annotation in expected]
        torch.testing.assert_close(target["area"], torch.tensor([float(a["area"]) for a in expected]))
    assert seen == len([a for a in coco.anns.values() if crowds or not a["iscrowd"]])


def test_images_and_types(sample_data):
    source = CocoImages(*find_coco(sample_data / "coco-tiny", "val"), masks=False)
    image, target = source.open(3), source.target(3)
    assert image.mode == "RGB"
    assert (image.height, image.width) == tuple(source.sizes[3])
    assert {name: value.dtype for name, value in target.items() if name != "image_id"} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "area": torch.float32,
        "iscrowd": torch.int64,
    }
    assert target["labels"].min() >= 1
    about = source.about(3)
    assert about.keys() == target.keys()
    about["boxes"] += 1  # a copy: what is done to it is not done to the source
    assert torch.equal(source.target(3)["boxes"], target["boxes"])


def test_survives_pickling(sample_data):
    source = CocoImages(*find_coco(sample_data / "coco-tiny", "train"), masks=True)
    other = pickle.loads(pickle.dumps(source))
    for index in (0, 40, 79):
        assert other.name(index) == source.name(index)
        for name, value in source.target(index).items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other.target(index)[name]))


def test_the_three_ways_to_write_a_mask(tmp_path):
    inside = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    inside[10:25, 10:30] = 1
    runs = [len(list(same)) for _, same in itertools.groupby(inside.T.flatten().tolist())]
    compressed = pycoco_mask.encode(np.asfortranarray(inside))["counts"].decode()
    size = [HEIGHT, WIDTH]
    ways = [SQUARE, {"size": size, "counts": runs}, {"size": size, "counts": compressed}]
    two_parts = [[10, 10, 20, 10, 20, 25, 10, 25], [20, 10, 30, 10, 30, 25, 20, 25], [1, 2], [3, 4, 5, 6]]
    source = opened(tmp_path, content(*({"segmentation": way} for way in [*ways, two_parts])))
    assert source.problems == ()
    for mask in source.target(0)["masks"]:
        assert np.array_equal(mask.numpy(), inside)


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_run_lengths_and_masks_round_trip(inside):
    rle = encode_mask(inside)
    runs = run_lengths(rle["counts"])
    values = np.arange(len(runs)) % 2
    assert np.array_equal(np.repeat(values, runs).reshape(inside.shape[::-1]).T, inside)
    assert mask_problem(rle, *inside.shape) is None
    assert np.array_equal(decode_mask(rle, *inside.shape), inside)
    listed = {"size": rle["size"], "counts": runs.tolist()}
    assert np.array_equal(decode_mask(listed, *inside.shape), inside)


@given(st.text(alphabet=[chr(code) for code in range(48, 112)], max_size=8), st.integers(1, 8), st.integers(1, 8))
def test_whatever_passes_is_decoded_in_whole(counts, height, width):
    # pycocotools reads beyond its memory where the runs do not fill the image: those must not get to it.
    rle = {"size": [height, width], "counts": counts}
    if mask_problem(rle, height, width) is None:
        runs = run_lengths(counts)
        expected = np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T
        assert np.array_equal(decode_mask(rle, height, width), expected)


def test_images_without_annotations(tmp_path):
    given = content({}, {})
    source = opened(tmp_path, given)
    assert [source.name(index) for index in range(len(source))] == ["a.png", "b.png"]
    shapes = {name: tuple(value.shape) for name, value in source.target(1).items() if name != "image_id"}
    assert shapes == {"boxes": (0, 4), "labels": (0,), "area": (0,), "iscrowd": (0,), "masks": (0, HEIGHT, WIDTH)}
    source = opened(tmp_path, given, empty=False)
    assert len(source) == 1
    assert len(source.target(0)["labels"]) == 2
    assert len(opened(tmp_path, content())) == 2  # no annotations at all
    with pytest.raises(ValueError, match="nothing is left"):
        opened(tmp_path, content(), empty=False)
    with pytest.raises(ValueError, match="nothing is left"):
        opened(tmp_path, content({"iscrowd": 1}), empty=False)


def test_what_may_be_missing(tmp_path):
    given = content({})
    for name in ("area", "id"):
        del given["annotations"][0][name]
    target = opened(tmp_path, given).target(0)
    assert target["area"].tolist() == [300]
    assert target["iscrowd"].tolist() == [0]


# --- Classes


def test_order_of_classes(tmp_path):
    given = content({}, {"category_id": 9})
    source = opened(tmp_path, given)
    assert (source.classes, source.category_ids) == (("cat", "dog"), (3, 9))
    assert source.target(0)["labels"].tolist() == [1, 2]
    source = opened(tmp_path, given, classes=["dog", "cow", "cat"], category_ids=[9, 5, 3])
    assert (source.classes, source.category_ids) == (("dog", "cow", "cat"), (9, 5, 3))
    assert source.target(0)["labels"].tolist() == [3, 1]
    assert opened(tmp_path, given, classes=["dog", "cat"]).category_ids == (9, 3)
    assert opened(tmp_path, given, category_ids=[9, 3]).classes == ("dog", "cat")
    # A category that nothing is of, as the one that Roboflow puts above all, may be unknown.
    assert opened(tmp_path, content({}), classes=["cat"]).category_ids == (3,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["cat", "cow"]}, "cow not among the 2 categories"),
        ({"classes": ["cat", "cat"]}, "'cat' comes twice"),
        ({"classes": ["cat"]}, "category 'dog' is not among the 1 known ones"),
        ({"classes": ["cat", "dog"], "category_ids": [3]}, "as many category_ids"),
        ({"classes": ["cat", "dog"], "category_ids": [3, 4]}, "'dog' has the id 9, but 4 was expected"),
        ({"category_ids": [3, 4]}, r"\[4\] of the categories"),
        ({"category_ids": [3, 3]}, "one comes twice"),
    ],
)
def test_classes_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, content({}, {"category_id": 9}), **options)


# --- What is wrong in a file


SIZE = [HEIGHT, WIDTH]
BROKEN = [
    ("no fields", "an annotation"),
    ("an unknown image id", {"image_id": 99}),
    ("an unknown image id", {"image_id": [7]}),
    ("an unknown category id", {"category_id": 4}),
    ("an unknown category id", {"category_id": None}),
    ("no box of four numbers", {"bbox": [1, 2, 3]}),
    ("no box of four numbers", {"bbox": None}),
    ("no box of four numbers", {"bbox": [1, 2, "3", 4]}),
    ("a box of numbers that are not finite", {"bbox": [1, math.nan, 3, 4]}),
    ("a box of numbers that are not finite", {"bbox": [1, 2, math.inf, 4]}),
    ("a box of numbers that are not finite", {"bbox": [1, 10**400, 3, 4]}),
    ("a box without area", {"bbox": [10, 10, 0, 15]}),
    ("a box without area", {"bbox": [10, 10, 20, -15]}),
    ("a box without area", {"bbox": [10, 10, 1e-9, 15]}),
    ("a box outside the image", {"bbox": [WIDTH, 10, 20, 15]}),
    ("a box outside the image", {"bbox": [10, -20, 20, 15]}),
]
BROKEN_MASKS = [
    ("no mask", {"segmentation": []}),
    ("no mask", {"segmentation": None}),
    ("a mask of an unknown kind", {"segmentation": "0 1 2"}),
    ("polygons of fewer than 3 points", {"segmentation": [[10, 10, 30, 10]]}),
    ("polygons of fewer than 3 points", {"segmentation": [[], [10, 10, 30, 10, 5, 5, 7]]}),
    ("a mask of numbers that are not finite", {"segmentation": [[10, 10, 30, math.nan, 30, 25]]}),
    ("a mask of numbers that are not finite", {"segmentation": [[10, 10, 30, "x", 30, 25]]}),
    ("a mask of numbers that are not finite", {"segmentation": [[10, 10, 30, 10**400, 30, 25]]}),
    ("a mask far outside its image", {"segmentation": [[10, 10, -1e12, 20, 30, 25]]}),
    ("a mask of another size than the image", {"segmentation": {"size": [WIDTH, HEIGHT], "counts": [5, 2395]}}),
    ("a mask of another size than the image", {"segmentation": {"counts": [5, 2395]}}),
    ("a damaged mask", {"segmentation": {"size": SIZE, "counts": [5, 5]}}),
    ("a damaged mask", {"segmentation": {"size": SIZE, "counts": [-5, 2405]}}),
    ("a damaged mask", {"segmentation": {"size": SIZE, "counts": [0.5, 2399.5]}}),
    ("a damaged mask", {"segmentation": {"size": SIZE, "counts": []}}),
    ("a damaged mask", {"segmentation": {"size": SIZE, "counts": ""}}),
    ("a damaged mask", {"segmentation": {"size": SIZE, "counts": "é"}}),
    ("a damaged mask", {"segmentation": {"size": SIZE, "counts": "P1"}}),
    ("a damaged mask", {"segmentation": {"size": SIZE, "counts": "zzz"}}),
    ("a damaged mask", {"segmentation": {"size": SIZE, "counts": "o" * 30 + "1"}}),
]


@pytest.mark.parametrize(("kind", "wrong"), BROKEN + BROKEN_MASKS)
def test_what_cannot_be_used_is_left_out_and_told(tmp_path, kind, wrong):
    given = content({}, {"bbox": [1, 2, 3, 4]})
    given["annotations"].insert(1, {**given["annotations"][0], "id": 77, **wrong} if isinstance(wrong, dict) else wrong)
    with pytest.warns(UserWarning, match=f"1 of 3 annotations cannot be used and are left out: 1 with {kind}") as told:
        source = opened(tmp_path, given)
    assert len(told) == 1
    (problem,) = source.problems
    assert problem.kind == kind
    assert problem.reason
    assert problem.annotation == (77 if isinstance(wrong, dict) else None)
    assert problem.image == ("a.png" if isinstance(wrong, dict) and wrong.get("image_id", 7) == 7 else "")
    assert source.target(0)["boxes"].tolist() == [[10, 10, 30, 25], [1, 2, 4, 6]]
    assert len(source.target(0)["masks"]) == 2
    # Without masks nothing is said of them.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        source = opened(tmp_path, given, masks=False)
    assert len(told) == len(source.problems) == ((kind, wrong) in BROKEN)


def test_many_problems_make_one_warning(tmp_path):
    given = content({}, *({"bbox": [0, 0, 0, width]} for width in range(5)), {"category_id": 4})
    with pytest.warns(UserWarning, match="6 of 7") as told:
        source = opened(tmp_path, given)
    assert len(told) == 1
    text = str(told[0].message)
    assert "5 with a box without area (annotation 2 of a.png: its bbox is [0, 0, 0, 0]; annotation 3" in text
    assert "1 with an unknown category id (annotation 7 of a.png: its category_id is 4)" in text
    assert "annotation 5" not in text  # a few are enough
    assert told[0].filename == __file__
    assert [problem.annotation for problem in source.problems] == [2, 3, 4, 5, 6, 7]


def test_boxes_over_the_border_are_clipped(tmp_path):
    source = opened(tmp_path, content({"bbox": [-5, -6, 10, 10]}, {"bbox": [50, 30, 99, 99.5]}))
    assert source.problems == ()
    assert source.target(0)["boxes"].tolist() == [[0, 0, 5, 4], [50, 30, 60, 40]]


places, lengths = (
    st.floats(-1e5, 1e5) | st.floats(-20, 80),
    st.floats(-1e5, 1e5) | st.floats(0, 20) | st.floats(0, 1e-3),
)


@given(st.lists(st.tuples(places, places, lengths, lengths), min_size=1, max_size=5), st.floats(0.1, 10))
@example([(33.3, 10, 10**-power, 20) for power in range(9)], 0.9)
def test_boxes_that_are_left_have_an_area_at_any_scale(tmp_path_factory, boxes, scale):
    folder = tmp_path_factory.mktemp("coco")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = opened(folder, content(*({"bbox": box} for box in boxes)), masks=False)
    found = source.target(0)["boxes"] * torch.tensor(scale)
    assert (found[:, 2:] > found[:, :2]).all()
    assert (found >= 0).all()
    assert len(found) + len(source.problems) == len(boxes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "is not JSON"),
        ("\x80", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([], "holds a list, not an object .predictions are a list"),
        ({"images": []}, "has no list 'annotations'|has no images"),
        (content(images=None), "has no list 'images'"),
        (content(annotations={}), "has no list 'annotations'"),
        (content(categories=[]), "has no categories"),
        (content(images=[]), "has no images"),
        (content(images=[{"id": 1, "file_name": "a", "height": 4, "width": 4}] * 2), "images: the id 1 comes twice"),
        (content(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "categories: the id 1 comes twice"),
        (content(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "two categories are called 'a'"),
        (content(categories=[{"id": "1", "name": "a"}]), "no whole number as its id"),
        (content(categories=[{"id": 1}]), "has no name"),
        (content(images=[{"id": 1, "height": 4, "width": 4}]), "has no file_name"),
        (content(images=[{"id": 1, "file_name": "a.png", "height": 4}]), r"image 1 \(a.png\) has width=None"),
        (content(images=[{"id": 1, "file_name": "a.png", "height": 0, "width": 4}]), "has height=0"),
        (content(images=["a.png"]), "no whole number as its id"),
    ],
)
def test_files_that_are_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, given)


def test_places_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_annotations(tmp_path / "x.json", masks=False)
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        CocoImages(written(tmp_path, content({})), tmp_path / "x", masks=False)


def test_pycocotools_is_needed_for_masks_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert len(opened(tmp_path, content({}), masks=False)) == 2
    with pytest.raises(ValueError, match=r"pip install 'openfastervit\[detection\]'"):
        opened(tmp_path, content({}), masks=True)


# --- Opening images


def test_images_that_cannot_be_opened(tmp_path):
    source = opened(tmp_path, content({}))
    with pytest.raises(ImageError, match="there is no such file"):
        source.open(0)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ImageError, match="not an image"):
        source.open(0)
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="it is 60 pixels wide and 41 high, but 60 and 40 by its annotations"):
        source.open(0)
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "a.png")  # lying, and not by its orientation
    with pytest.raises(ImageError, match="40 pixels wide and 60 high"):
        source.open(0)
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    assert source.open(0).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_annotations_say_which_way_is_up(tmp_path, orientation):
    """An image whose stored pixels have the annotations' size is theirs; one that has it upright is turned."""
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(pixels)
    stored.save(tmp_path / "a.png", exif=exif)
    if orientation in (1, 5, 6, 7, 8):
        assert np.array_equal(np.asarray(opened(tmp_path, content({})).open(0)), pixels)
    if orientation >= 5:
        given = content()
        for image in given["images"]:
            image["height"], image["width"] = WIDTH, HEIGHT
        upright = np.asarray(opened(tmp_path, given).open(0))
        expected = {5: pixels.transpose(1, 0, 2), 6: np.rot90(pixels, -1), 8: np.rot90(pixels)}
        expected[7] = np.rot90(pixels.transpose(1, 0, 2), 2)
        assert np.array_equal(upright, expected[orientation])
