import os
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from openfastervit.data import ImageError, Source, has_split, open_source, open_train_val
from tests.data.trees import pairs, pixels, write_tree

NAMES = st.text("abAB019_- é", min_size=1, max_size=4).filter(lambda name: name.strip(" ") == name)
FILES = st.sampled_from(["1.jpg", "2.PNG", "10.jpeg", "b.webp", "B.ppm", "notes.txt", "x.jpg.txt", "a b.bmp"])
TREES = st.dictionaries(
    NAMES, st.lists(st.tuples(st.lists(NAMES, max_size=2), FILES), min_size=1, max_size=6), min_size=1, max_size=5
)


@settings(max_examples=60)
@given(tree=TREES)
def test_a_folder_holds_what_torchvision_finds_in_it_in_the_same_order(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, list[tuple[list[str], str]]]
):
    folder = tmp_path_factory.mktemp("tree")
    for name, files in tree.items():
        for below, file in [([], "0.jpg"), *files]:
            path = folder.joinpath(name, *below, file)
            if not path.parent.exists() or path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    expected = ImageFolder(folder)
    source = open_source(folder)
    assert list(source.classes) == expected.classes
    assert [str(folder / source.name(i)) for i in range(len(source))] == [path for path, _ in expected.samples]
    assert source.labels.tolist() == expected.targets


def test_images_are_those_of_torchvision(tmp_path: Path):
    write_tree(tmp_path, {"bee": 3, "ant": 2})
    source, expected = open_source(tmp_path), ImageFolder(tmp_path)
    assert len(source) == 5
    for i, (image, label) in enumerate(expected):
        assert np.array_equal(source.open(i), image)
        assert source.labels[i] == label
    assert open_source(tmp_path, mode="L").open(0).mode == "L"


def test_other_kinds_of_image_count_too_and_hidden_things_do_not(tmp_path: Path):
    write_tree(tmp_path, {"ant": 1, "bee": 1, ".ipynb_checkpoints": 1})
    for name in ["ant/photo.avif", "ant/photo.GIF", "ant/._0.png", "ant/.cache/1.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert pairs(open_source(tmp_path)) == [
        ("ant/0.png", "ant"),
        ("ant/photo.GIF", "ant"),
        ("ant/photo.avif", "ant"),
        ("bee/0.png", "bee"),
    ]


def test_linked_class_folders_are_followed(tmp_path: Path):
    write_tree(tmp_path / "store", {"a": 2})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ant").symlink_to(tmp_path / "store" / "a")
    source = open_source(tmp_path / "data")
    assert pairs(source) == [("ant/0.png", "ant"), ("ant/1.png", "ant")]
    assert len(pixels(source)) == 2


def test_names_that_are_no_text_are_opened(tmp_path: Path):
    write_tree(tmp_path, {"ant": 1})
    (tmp_path / "ant" / "0.png").rename(tmp_path / os.fsdecode(b"ant/\xff\xfe.png"))
    source = pickle.loads(pickle.dumps(open_source(tmp_path)))
    assert source.open(0).size == (12, 10)
    assert source.name(0) == os.fsdecode(b"ant/\xff\xfe.png")


def test_a_relative_folder_and_one_in_the_home_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tree(tmp_path / "data", {"ant": 1, "bee": 1})
    expected = [("ant/0.png", "ant"), ("bee/0.png", "bee")]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pairs(open_source("~/data")) == expected
    monkeypatch.chdir(tmp_path)
    assert pairs(open_source("data/")) == expected
    monkeypatch.chdir(tmp_path / "data")
    assert pairs(open_source(".")) == expected


@pytest.mark.parametrize(
    ("folders", "split", "found"),
    [
        (["train", "val"], "train", "train"),
        (["train", "val"], "training", "train"),
        (["training", "validation"], "train", "training"),
        (["train", "validation"], "val", "validation"),
        (["train", "test"], "val", "test"),
        (["train", "test", "valid"], "val", "valid"),
        (["train", "test", "valid"], "test", "test"),
        (["Train", "Val"], "val", "Val"),
        (["train", "eval"], "validation", "eval"),
    ],
)
def test_the_splits_folder_is_found_by_any_of_its_names(tmp_path: Path, folders: list[str], split: str, found: str):
    for number, name in enumerate(folders):
        write_tree(tmp_path / name, {"ant": number + 1})
    assert has_split(tmp_path, split)
    assert len(open_source(tmp_path, split)) == folders.index(found) + 1


def test_a_class_may_be_called_like_a_split(tmp_path: Path):
    write_tree(tmp_path, {"bus": 1, "train": 2})
    assert open_source(tmp_path, "val").classes == ("bus", "train")
    assert not has_split(tmp_path, "train")
    write_tree(tmp_path / "divided" / "train", {"bus": 1, "train": 2})
    assert pairs(open_source(tmp_path / "divided"))[1:] == [("train/0.png", "train"), ("train/1.png", "train")]


def test_unlabelled_pictures_are_no_split(tmp_path: Path):
    write_tree(tmp_path / "train", {"ant": 4, "bee": 4})
    write_tree(tmp_path, {"test": 3})
    assert not has_split(tmp_path, "test")
    assert open_train_val(tmp_path)[2]


def test_a_missing_split_is_an_error(tmp_path: Path):
    write_tree(tmp_path / "train", {"ant": 1})
    with pytest.raises(ValueError, match=f"split='val': there is none in {tmp_path}; there is train"):
        open_source(tmp_path, "val")


def test_an_unknown_split_is_an_error(tmp_path: Path):
    write_tree(tmp_path, {"ant": 1})
    with pytest.raises(ValueError, match=r"split='vall' is unknown; did you mean 'val'\?"):
        open_source(tmp_path, "vall")


def test_a_class_folder_without_images_stays_with_one_warning(tmp_path: Path):
    write_tree(tmp_path, {"ant": 1, "bee": 0, "cat": 1, "dog": 0})
    with pytest.warns(UserWarning, match="no images in the class folders bee, dog; they stay classes") as caught:
        source = open_source(tmp_path)
    assert len(caught) == 1
    assert source.classes == ("ant", "bee", "cat", "dog")
    assert source.labels.tolist() == [0, 2]


def test_images_in_no_class_folder_are_told(tmp_path: Path):
    write_tree(tmp_path, {"ant": 1})
    write_tree(tmp_path, {".": 2})
    with pytest.warns(UserWarning, match="2 images in no class folder are left out"):
        assert len(open_source(tmp_path)) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no images, and no class folders; check the path"),
        (["0.png", "1.png"], "2 images, and no class folders; put those of each class in a folder named after it"),
        (["ant/notes.txt"], r"no images in its folders \(ant\); looked for .*\.png"),
    ],
)
def test_a_folder_that_is_no_data_set_is_an_error(tmp_path: Path, names: list[str], message: str):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("imagenete", "no folder at .*imagenete; did you mean .*imagenette"),
        ("nothing/like/it", "no folder at .*; check the path"),
    ],
)
def test_a_missing_folder_is_an_error(tmp_path: Path, data: str, message: str):
    (tmp_path / "imagenette").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        open_source(tmp_path / data)


@pytest.mark.parametrize(
    ("data", "kwargs", "message"),
    [
        ("hdfs/cifar10", {}, "did you mean hfds/cifar10"),
        ("touch/cifar10", {}, "did you mean torch/cifar10"),
        ("torch/", {"root": "x"}, "needs a name after torch/"),
        ("https://host/train.tar", {}, "https://host/train.tar is remote; .*copy it there first"),
        ("wds/s3://bucket/{0..9}.tar", {}, "is remote"),
        ("pipe:cat x.tar", {}, "is remote"),
        (".", {"root": "x"}, r"root='x' is for wds/NAME, hfds/NAME, torch/NAME; give \. alone"),
        (".", {"download": True}, r"download=True is for torch/NAME and hfds/NAME; \. must be there already"),
        (__file__, {}, "is a file; give a folder"),
    ],
)
def test_what_cannot_be_meant_is_an_error(data: str, kwargs: dict[str, object], message: str):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_source(data, **kwargs)


def test_a_given_order_of_classes_is_kept(tmp_path: Path):
    write_tree(tmp_path, {"ant": 1, "bee": 2})
    source = open_source(tmp_path, classes=["cat", "bee", "ant"])
    assert source.classes == ("cat", "bee", "ant")
    assert source.labels.tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["ant", "bea"], "class 'bee' is not among the 2 known ones .*did you mean 'bea'"),
        (["ant"], "class 'bee' is not among the 1 known ones"),
        (["ant", "bee", "ant"], "classes: 'ant' comes twice"),
        ([], "must be a list of names"),
        ("ant", "must be a list of names"),
    ],
)
def test_a_class_that_is_not_in_the_given_order_is_an_error(tmp_path: Path, classes: list[str], message: str):
    write_tree(tmp_path, {"ant": 1, "bee": 2})
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path, classes=classes)


def test_an_image_that_cannot_be_read_says_so_when_it_is_opened(tmp_path: Path):
    write_tree(tmp_path, {"ant": 2})
    (tmp_path / "ant" / "1.png").write_bytes(b"")
    source = open_source(tmp_path)
    assert source.open(0).size == (12, 10)
    with pytest.raises(ImageError, match="empty"):
        source.open(1)
    with pytest.raises(IndexError):
        source.open(2)


def test_validation_has_trainings_order_of_classes(tmp_path: Path):
    write_tree(tmp_path / "train", {"ant": 2, "bee": 2, "cat": 2})
    write_tree(tmp_path / "val", {"bee": 1, "cat": 2})
    training, validation, held_out = open_train_val(tmp_path)
    assert not held_out
    assert training.classes == validation.classes == ("ant", "bee", "cat")
    assert validation.labels.tolist() == [1, 2, 2]


def test_a_class_that_is_in_validation_only_is_an_error(tmp_path: Path):
    write_tree(tmp_path / "train", {"ant": 2, "bee": 2})
    write_tree(tmp_path / "val", {"ant": 1, "bees": 1})
    with pytest.raises(ValueError, match=r"val: class 'bees' is not among the 2 known ones .*did you mean 'bee'"):
        open_train_val(tmp_path)


def test_validation_is_held_out_where_there_is_none(tmp_path: Path):
    write_tree(tmp_path / "flat", {"ant": 10, "bee": 20})
    write_tree(tmp_path / "divided" / "train", {"ant": 10, "bee": 20})
    for folder in ("flat", "divided"):
        training, validation, held_out = open_train_val(tmp_path / folder, val_fraction=0.2)
        assert held_out
        assert np.bincount(training.labels).tolist() == [8, 16]
        assert np.bincount(validation.labels).tolist() == [2, 4]
        assert {*pairs(training)} | {*pairs(validation)} == {*pairs(open_source(tmp_path / folder))}


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"val_split": "dev"}, "split='dev': there is none in"),
        ({"train_split": "trai"}, "split='trai': there is none in"),
        ({"val_split": "train"}, "train_split='train' and val_split='train' are the same images"),
        ({"train_split": "val"}, "are the same images"),
    ],
)
def test_splits_that_cannot_be_meant_are_errors(tmp_path: Path, splits: dict[str, str], message: str):
    write_tree(tmp_path / "train", {"ant": 2})
    write_tree(tmp_path / "val", {"ant": 2})
    with pytest.raises(ValueError, match=message):
        open_train_val(tmp_path, **splits)


class Pixels(Dataset[tuple[int, np.ndarray]]):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        return int(self.source.labels[index]), np.asarray(self.source.open(index)).copy()


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_loader_read_it(tmp_path: Path, context: str):
    source = open_train_val(write_tree(tmp_path, {"ant": 5, "bee": 7}), val_fraction=0.3)[0]
    loader = DataLoader(Pixels(source), batch_size=None, num_workers=2, multiprocessing_context=context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads, from Python 3.12 on
        read = [(label, image) for label, image in loader]
    assert [label for label, _ in read] == source.labels.tolist()
    assert all(np.array_equal(image, expected) for (_, image), expected in zip(read, pixels(source), strict=True))


def test_real_photographs(sample_data: Path):
    source, expected = open_source(sample_data / "imagenette-val-224"), ImageFolder(sample_data / "imagenette-val-224")
    assert list(source.classes) == expected.classes
    assert source.labels.tolist() == expected.targets
    for i in range(0, len(source), 97):
        assert re.fullmatch(r"n\d{8}/\w+\.(JPEG|jpg)", source.name(i))
        assert np.array_equal(source.open(i), expected[i][0])
