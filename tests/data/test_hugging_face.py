import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from openfastervit.data import ImageError, has_split, open_source, open_train_val
from openfastervit.data.hugging_face import HuggingFaceSource
from tests.data.test_sources import Pixels
from tests.data.trees import pixels, write_tree
from tests.pocket import picture

NAMES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def rows(
    labels: Sequence[Any],
    feature: Any = None,
    *,
    image: str = "image",
    label: str = "label",
    images: Any = None,
    **columns: Any,
) -> datasets.Dataset:
    pictures = [picture(i, (12, 10)) for i in range(len(labels))] if images is None else images
    features = {image: datasets.Image(), label: feature or datasets.ClassLabel(names=NAMES)}
    features |= {name: kind for name, (kind, _) in columns.items()}
    content = {image: pictures, label: labels} | {name: values for name, (_, values) in columns.items()}
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def test_a_saved_data_set_is_read_as_it_was_written(tmp_path: Path):
    rows([2, 0, 1, 2]).save_to_disk(tmp_path / "saved")
    expected = datasets.load_from_disk(tmp_path / "saved")
    source = open_source(tmp_path / "saved")
    assert source.classes == tuple(NAMES)
    assert source.labels.tolist() == list(expected["label"]) == [2, 0, 1, 2]
    assert [source.name(i) for i in (0, 3)] == ["train[0]", "train[3]"]
    for row, image in zip(expected, pixels(source), strict=True):
        assert np.array_equal(image, row["image"])


def test_splits_that_were_saved_are_found(tmp_path: Path):
    dataset = rows([2, 0, 1, 2])
    datasets.DatasetDict({"train": dataset, "validation": dataset.select([3, 1])}).save_to_disk(tmp_path / "saved")
    training, validation, held_out = open_train_val(tmp_path / "saved")
    assert not held_out
    assert (len(training), len(validation)) == (4, 2)
    assert validation.labels.tolist() == [2, 0]  # by way of the indices that select() leaves
    assert validation.name(0) == "validation[0]"
    assert np.array_equal(validation.open(0), training.open(3))
    assert has_split(tmp_path / "saved", "eval")
    assert not has_split(tmp_path / "saved", "dev")
    with pytest.raises(ValueError, match=r"split='dev': there is none in .*saved; there is train, validation"):
        open_source(tmp_path / "saved", "dev")


def test_split_folders_may_each_be_a_saved_data_set(tmp_path: Path):
    rows([0, 1, 2]).save_to_disk(tmp_path / "train")
    rows([1], datasets.ClassLabel(names=["bee", "ant"])).save_to_disk(tmp_path / "test")
    training, validation, held_out = open_train_val(tmp_path)
    assert not held_out
    assert training.classes == validation.classes
    assert validation.labels.tolist() == [0]


def test_a_saved_data_set_that_is_not_divided_is_held_out_from(tmp_path: Path):
    rows([0, 1] * 5).save_to_disk(tmp_path / "saved")
    training, validation, held_out = open_train_val(tmp_path / "saved", val_fraction=0.2)
    assert held_out
    assert (len(training), len(validation)) == (8, 2)


def test_a_folder_that_datasets_can_load_is_read(tmp_path: Path):
    write_tree(tmp_path / "photos" / "train", {"ant": 3, "bee": 3})
    write_tree(tmp_path / "photos" / "test", {"ant": 2, "bee": 1})
    training, validation, held_out = open_train_val(f"hfds/{tmp_path}/photos", root=tmp_path / "cache")
    folders = open_train_val(tmp_path / "photos")
    assert not held_out
    for source, folder in zip((training, validation), folders[:2], strict=True):
        assert source.classes == folder.classes
        assert source.labels.tolist() == folder.labels.tolist()
        assert all(np.array_equal(a, b) for a, b in zip(pixels(source), pixels(folder), strict=True))


def test_parquet_and_slices_of_a_split_are_read(tmp_path: Path):
    (tmp_path / "data").mkdir()
    rows([0, 1, 2, 1, 0, 2, 2, 1, 0, 0]).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    name, root = f"hfds/{tmp_path}/data", tmp_path / "cache"
    whole = open_source(name, root=root)
    assert whole.labels.tolist() == [0, 1, 2, 1, 0, 2, 2, 1, 0, 0]
    assert whole.name(2) == "train[2]"
    head, tail, held_out = open_train_val(name, root=root, train_split="train[:70%]", val_split="train[70%:]")
    assert not held_out
    assert [*head.labels, *tail.labels] == whole.labels.tolist()
    assert len(head) == 7
    assert head.name(2) == "train[:70%][2]"
    with pytest.raises(ValueError, match=r"datasets cannot load it \(.*\); check the name"):
        open_source(name, "train[:7x]", root=root)


def test_a_saved_data_set_has_no_slices(tmp_path: Path):
    datasets.DatasetDict({"train": rows([0, 1])}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"split='train\[:1\]': .* whole splits only; give 'train'"):
        open_source(tmp_path / "saved", "train[:1]")


@pytest.mark.parametrize(
    ("labels", "feature", "classes", "wanted"),
    [
        ([2, 0, 2], datasets.ClassLabel(names=NAMES), ("ant", "bee", "cat"), [2, 0, 2]),
        ([2, 0, 2], datasets.Value("int64"), ("0", "1", "2"), [2, 0, 2]),
        ([2, 0, 2], datasets.Value("uint8"), ("0", "1", "2"), [2, 0, 2]),
        (["cat", "ant", "cat"], datasets.Value("string"), ("ant", "cat"), [1, 0, 1]),
        (["cat", "ant", "cat"], datasets.Value("large_string"), ("ant", "cat"), [1, 0, 1]),
    ],
)
def test_labels_are_numbers_or_names(
    tmp_path: Path, labels: list[Any], feature: Any, classes: tuple[str, ...], wanted: list[int]
):
    rows(labels, feature).save_to_disk(tmp_path / "saved")
    source = open_source(tmp_path / "saved")
    assert source.classes == classes
    assert source.labels.tolist() == wanted


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0, None, 1], datasets.ClassLabel(names=NAMES), "image 1 has no label in column 'label'"),
        ([0, 1, -1], datasets.ClassLabel(names=NAMES), "image 2 has the label -1, which stands for none"),
        ([0.5, 1.0, 2.0], datasets.Value("float32"), "labels in column 'label' must be whole numbers or names"),
        ([[0], [1], [2]], datasets.List(datasets.Value("int64")), "labels in column 'label' must be whole numbers"),
        ([0, 7, 1], datasets.Value("int64"), "image 1 has the label 7, but there are 2 classes"),
    ],
)
def test_labels_that_are_none_are_errors(tmp_path: Path, labels: list[Any], feature: Any, message: str):
    rows(labels, feature).save_to_disk(tmp_path / "saved")
    classes = ["ant", "bee"] if 7 in labels else None
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "saved", classes=classes)


@pytest.mark.parametrize(
    "columns",
    [
        {"image": "image", "label": "label"},
        {"image": "img", "label": "labels"},
        {"image": "img", "label": "fine_label", "coarse_label": (datasets.ClassLabel(names=["a"]), [0, 0])},
        {"image": "photo", "label": "species", "caption": (datasets.Value("string"), ["x", "y"])},
        {"image": "image", "label": "label", "mask": (datasets.Image(), [picture(7), picture(8)])},
    ],
)
def test_columns_are_found_by_name_or_kind(tmp_path: Path, columns: dict[str, Any]):
    rows([2, 1], **columns).save_to_disk(tmp_path / "saved")
    source = open_source(tmp_path / "saved")
    assert source.labels.tolist() == [2, 1]
    assert np.array_equal(source.open(1), picture(1, (12, 10)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": "left", "right": (datasets.Image(), [picture(0), picture(1)])},
            "which column holds the images.*left, label, right; rename it to 'image'",
        ),
        (
            {"label": "score", "feature": datasets.Value("int64")},
            "which column holds the labels.* rename it to 'label'",
        ),
    ],
)
def test_columns_that_cannot_be_told_are_errors(tmp_path: Path, columns: dict[str, Any], message: str):
    rows([0, 1], **columns).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "saved")


@pytest.mark.parametrize("kind", ["bytes", "struct", "text"])
def test_images_in_columns_of_another_kind(tmp_path: Path, kind: str):
    file = io.BytesIO()
    picture(3).save(file, "png")
    value: Any = {"bytes": file.getvalue(), "struct": {"bytes": file.getvalue(), "path": None}, "text": 7}[kind]
    dataset = datasets.Dataset.from_dict({"image": [value], "label": [0]})
    dataset.save_to_disk(tmp_path / "saved")
    if kind == "text":
        with pytest.raises(ValueError, match=r"column 'image' holds no images but .*int64"):
            open_source(tmp_path / "saved")
    else:
        assert np.array_equal(open_source(tmp_path / "saved").open(0), picture(3))


def test_an_image_that_cannot_be_read_is_an_image_error(tmp_path: Path):
    images = [{"bytes": b"no image", "path": None}, {"bytes": None, "path": str(tmp_path / "gone.png")}, None]
    source = HuggingFaceSource(rows([0, 1, 2], images=images), "train", where="here")
    for index, message in enumerate(["not an image", "no such file", "the row holds no image"]):
        with pytest.raises(ImageError, match=message):
            source.open(index)


def test_our_decoding_is_used_and_not_theirs(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture(1, (30, 20)).save(file, "png", exif=exif)
    rows([0], images=[{"bytes": file.getvalue(), "path": None}]).save_to_disk(tmp_path / "saved")
    assert open_source(tmp_path / "saved").open(0).size == (20, 30)
    assert open_source(tmp_path / "saved", mode="L").open(0).mode == "L"


def test_a_given_order_of_classes_is_kept(tmp_path: Path):
    rows([2, 0]).save_to_disk(tmp_path / "saved")
    assert open_source(tmp_path / "saved", classes=["cat", "dog", "bee", "ant"]).labels.tolist() == [0, 3]
    with pytest.raises(ValueError, match="class 'bee' is not among the 2 known ones"):
        open_source(tmp_path / "saved", classes=["ant", "cat"])


def test_two_workers_of_a_loader_read_it(tmp_path: Path):
    rows([0, 1, 2, 1, 0]).save_to_disk(tmp_path / "saved")
    source = pickle.loads(pickle.dumps(open_source(tmp_path / "saved")))
    expected = pixels(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads, from Python 3.12 on
        read = list(DataLoader(Pixels(source), batch_size=None, num_workers=2, multiprocessing_context="fork"))
    assert [label for label, _ in read] == [0, 1, 2, 1, 0]
    assert all(np.array_equal(image, wanted) for (_, image), wanted in zip(read, expected, strict=True))


def test_what_datasets_cannot_load_is_an_error_on_one_line(tmp_path: Path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{")
    for data in (f"hfds/{tmp_path}/nowhere", tmp_path / "broken"):
        with pytest.raises(ValueError, match=r"datasets cannot load it \(.*\); check the name, or the path") as caught:
            open_source(data)
        assert "\n" not in str(caught.value)


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        open_source("hfds/cifar10")


def test_the_library_is_not_loaded_without_need():
    code = (
        "import sys, openfastervit.data; print([m for m in ('datasets', 'webdataset', 'pyarrow') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
