import bz2
import json
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from scipy.io import savemat

from openfastervit.data import ImageError, has_split, open_source, open_train_val
from openfastervit.data.torchvision_sets import SETS, find_name
from tests.data.trees import pairs, write_tree
from tests.pocket import picture

LABELS = {"train": [1, 0, 2, 1], "val": [2, 0], "test": [0, 2, 1]}


def gray(split: str, side: int) -> np.ndarray:
    return np.random.default_rng(len(split)).integers(0, 256, (len(LABELS[split]), side, side), dtype=np.uint8)


def colour(split: str, side: int) -> np.ndarray:
    return np.random.default_rng(len(split)).integers(0, 256, (len(LABELS[split]), side, side, 3), dtype=np.uint8)


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, (12, 10)).save(path, quality=95)


def write_mnist(root: Path, name: str = "MNIST") -> None:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = gray(split, 28), np.array(LABELS[split], dtype=np.uint8)
        head = struct.pack(">4I", 0x803, len(images), 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, len(labels)) + labels.tobytes())


def write_cifar(root: Path, name: str = "CIFAR10") -> None:
    kind = getattr(torchvision.datasets, name)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    key = "labels" if name == "CIFAR10" else "fine_labels"
    for split, files in (("train", kind.train_list), ("test", kind.test_list)):
        planes = colour(split, 32).transpose(0, 3, 1, 2).reshape(len(LABELS[split]), -1)
        for number, (file, _) in enumerate(files):
            part = slice(number, None if number == len(files) - 1 else number + 1)
            (folder / file).write_bytes(pickle.dumps({"data": planes[part], key: LABELS[split][part]}))
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: ["ant", "bee", "cat"]}))


def write_dtd(root: Path) -> None:
    for split, labels in LABELS.items():
        lines = [f"{'abc'[label]}/{split}{i}.jpg" for i, label in enumerate(labels)]
        (root / "dtd" / "dtd" / "labels").mkdir(parents=True, exist_ok=True)
        (root / "dtd" / "dtd" / "labels" / f"{split}1.txt").write_text("\n".join(lines) + "\n")
        for i, line in enumerate(lines):
            photo(root / "dtd" / "dtd" / "images" / line, i)


def write_food(root: Path) -> None:
    (root / "food-101" / "meta").mkdir(parents=True)
    for split in ("train", "test"):
        names: dict[str, list[str]] = {}
        for i, label in enumerate(LABELS[split]):
            names.setdefault("abc"[label], []).append(f"{'abc'[label]}/{split}{i}")
            photo(root / "food-101" / "images" / f"{names['abc'[label]][-1]}.jpg", i)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(names))


def write_pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for split, file in (("train", "trainval"), ("test", "test")):
        lines = [f"{'abc'[label]}_{split}{i} {label + 1} 1 1" for i, label in enumerate(LABELS[split])]
        (folder / "annotations" / f"{file}.txt").write_text("\n".join(lines) + "\n")
        for i, line in enumerate(lines):
            photo(folder / "images" / f"{line.split()[0]}.jpg", i)


def write_flowers(root: Path) -> None:
    folder = root / "flowers-102"
    folder.mkdir()
    order = [(split, label) for split, labels in LABELS.items() for label in labels]
    ids = {split: [i + 1 for i, (of, _) in enumerate(order) if of == split] for split in LABELS}
    savemat(folder / "setid.mat", {"trnid": ids["train"], "valid": ids["val"], "tstid": ids["test"]})
    savemat(folder / "imagelabels.mat", {"labels": [label + 1 for _, label in order]})
    for i in range(len(order)):
        photo(folder / "jpg" / f"image_{i + 1:05d}.jpg", i)


def write_aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    data.mkdir(parents=True)
    (data / "variants.txt").write_text("a 1\nb 2\nc 3\n")
    for split, labels in {**LABELS, "trainval": LABELS["train"] + LABELS["val"]}.items():
        lines = [f"{split}{i} {['a 1', 'b 2', 'c 3'][label]}" for i, label in enumerate(labels)]
        (data / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
        for i in range(len(labels)):
            photo(data / "images" / f"{split}{i}.jpg", i)


def write_cars(root: Path) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["a", "b", "c"], dtype=object)})
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        notes = [(f"{i}.jpg", label + 1) for i, label in enumerate(LABELS[split])]
        savemat(folder / file, {"annotations": np.array(notes, dtype=[("fname", object), ("class", object)])})
        for i in range(len(notes)):
            photo(folder / f"cars_{split}" / f"{i}.jpg", i)


def write_signs(root: Path) -> None:
    folder = root / "gtsrb"
    write_tree(folder / "GTSRB" / "Training", {"00000": 1, "00001": 2, "00002": 1})
    for path in folder.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".ppm"))
    lines = ["Filename;ClassId", *(f"{i}.ppm;{label}" for i, label in enumerate(LABELS["test"]))]
    (folder / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    for i in range(len(LABELS["test"])):
        photo(folder / "GTSRB" / "Final_Test" / "Images" / f"{i}.ppm", i)


def write_svhn(root: Path) -> None:
    for split in ("train", "test"):
        digits = [label or 10 for label in LABELS[split]]
        content = {"X": colour(split, 32).transpose(1, 2, 3, 0), "y": np.array(digits)[:, None]}
        savemat(root / f"{split}_32x32.mat", content)


def write_stl(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("a\nb\nc\n")
    (folder / "unlabeled_X.bin").touch()
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(colour(split, 96).transpose(0, 3, 2, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(label + 1 for label in LABELS[split]))


def write_usps(root: Path) -> None:
    for split, file in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        values = gray(split, 16).reshape(-1, 256) / 127.5 - 1
        lines = [
            f"{label + 1} " + " ".join(f"{i}:{value:.4f}" for i, value in enumerate(row, 1))
            for label, row in zip(LABELS[split], values, strict=True)
        ]
        (root / file).write_bytes(bz2.compress("\n".join(lines).encode() + b"\n"))


def write_semeion(root: Path) -> None:
    table = np.hstack([gray("train", 16).reshape(-1, 256) > 127, np.eye(10)[LABELS["train"]]])
    np.savetxt(root / "semeion.data", table)


def write_places(root: Path) -> None:
    (root / "categories_places365.txt").write_text("/a 0\n/b 1\n/c 2\n")
    for split, file, folder in (("train", "train_standard", "data_large_standard"), ("val", "val", "val_large")):
        lines = [f"{split}{i}.jpg {label}" for i, label in enumerate(LABELS[split])]
        (root / f"places365_{file}.txt").write_text("\n".join(lines) + "\n")
        for i in range(len(lines)):
            photo(root / folder / f"{split}{i}.jpg", i)


def write_imagenet(root: Path) -> None:
    torch.save(({"n01": ("crane", "bird"), "n02": ("crane",)}, ["n01"]), root / "meta.bin")
    for split in ("train", "val"):
        write_tree(root / split, {"n01": 2, "n02": 1})


def write_imagenette(root: Path) -> None:
    for split in ("train", "val"):
        write_tree(root / "imagenette2" / split, {"n01440764": 2, "n02102040": 1})
    for path in root.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".jpeg"))


def write_caltech(root: Path) -> None:
    for name, count in {"BACKGROUND_Google": 1, "ant": 2, "bee": 1}.items():
        for i in range(1, count + 1):
            photo(root / "caltech101" / "101_ObjectCategories" / name / f"image_{i:04d}.jpg", i)


def write_caltech256(root: Path) -> None:
    for number, (name, count) in enumerate({"001.ant": 2, "002.bee": 1}.items(), 1):
        for i in range(1, count + 1):
            photo(root / "caltech256" / "256_ObjectCategories" / name / f"{number:03d}_{i:04d}.jpg", i)


WRITERS: dict[str, Callable[[Path], None]] = {
    "CIFAR10": write_cifar,
    "CIFAR100": lambda root: write_cifar(root, "CIFAR100"),
    "Caltech101": write_caltech,
    "Caltech256": write_caltech256,
    "Country211": lambda root: [
        write_tree(root / "country211" / s, {"AD": 2, "AE": 1}) for s in ("train", "valid", "test")
    ],
    "DTD": write_dtd,
    "EuroSAT": lambda root: write_tree(root / "eurosat" / "2750", {"Forest": 2, "River": 1}),
    "FGVCAircraft": write_aircraft,
    "FashionMNIST": lambda root: write_mnist(root, "FashionMNIST"),
    "Flowers102": write_flowers,
    "Food101": write_food,
    "GTSRB": write_signs,
    "ImageNet": write_imagenet,
    "Imagenette": write_imagenette,
    "KMNIST": lambda root: write_mnist(root, "KMNIST"),
    "MNIST": write_mnist,
    "OxfordIIITPet": write_pets,
    "Places365": write_places,
    "RenderedSST2": lambda root: [
        write_tree(root / "rendered-sst2" / s, {"negative": 2, "positive": 1}) for s in ("train", "valid", "test")
    ],
    "SEMEION": write_semeion,
    "STL10": write_stl,
    "SVHN": write_svhn,
    "StanfordCars": write_cars,
    "USPS": write_usps,
}


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch):
    """Our files are not the published ones: that they are there is enough."""
    for name in SETS:
        kind = getattr(torchvision.datasets, name)
        module = sys.modules[kind.__module__]
        if hasattr(module, "check_integrity"):
            monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).exists())
        if name in ("Caltech101", "Caltech256"):
            monkeypatch.setattr(kind, "_check_integrity", lambda self: any(Path(self.root).iterdir()))


@pytest.mark.parametrize("name", SETS)
def test_each_set_gives_what_torchvision_gives(tmp_path: Path, name: str):
    WRITERS[name](tmp_path)
    kind = getattr(torchvision.datasets, name)
    for split, arguments in list(SETS[name].items()) or [("train", {})]:
        if name == "SEMEION":
            arguments = {"download": False}
        expected = kind(str(tmp_path), **arguments)
        source = pickle.loads(pickle.dumps(open_source(f"torch/{name.lower()}", split, root=tmp_path)))
        assert len(source) == len(expected) > 0
        assert source.name(1) == f"{split}[1]"
        for i in range(len(source)):
            image, label = expected[i]
            assert source.labels[i] == label
            assert source.open(i).mode == "RGB"
            assert np.array_equal(source.open(i), image.convert("RGB"))
    assert len(source.classes) > source.labels.max()
    assert len(set(source.classes)) == len(source.classes)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("CIFAR10", ("ant", "bee", "cat")),
        ("FashionMNIST", torchvision.datasets.FashionMNIST.classes),
        ("ImageNet", ("n01", "n02")),
        ("Imagenette", ("n01440764", "n02102040")),
        ("Caltech101", ("ant", "bee")),
        ("GTSRB", ("0", "1", "2")),
        ("OxfordIIITPet", ("A", "B", "C")),
    ],
)
def test_classes_have_the_names_that_torchvision_gives(tmp_path: Path, name: str, classes: tuple[str, ...]):
    WRITERS[name](tmp_path)
    assert open_source(f"torch/{name}", root=tmp_path).classes == tuple(classes)


@pytest.mark.parametrize(
    ("asked", "found"),
    [("cifar10", "CIFAR10"), ("CIFAR-10", "CIFAR10"), ("fashion_mnist", "FashionMNIST"), ("oxfordiiitpet",) * 2],
)
def test_a_set_is_found_by_any_spelling(asked: str, found: str):
    assert find_name(asked).lower() == found.lower()


def test_an_unknown_set_is_an_error():
    with pytest.raises(ValueError, match=r"torch/cifar11 is unknown; did you mean torch/cifar10\? there is cifar10, "):
        open_source("torch/cifar11", root="x")


def test_the_test_images_validate_where_there_is_nothing_else(tmp_path: Path):
    write_cifar(tmp_path)
    training, validation, held_out = open_train_val("torch/cifar10", root=tmp_path)
    assert not held_out
    assert training.labels.tolist() == LABELS["train"]
    assert validation.labels.tolist() == LABELS["test"]
    assert validation.name(0) == "test[0]"


def test_a_split_made_for_validation_comes_before_the_test_images(tmp_path: Path):
    write_dtd(tmp_path)
    assert open_train_val("torch/dtd", root=tmp_path)[1].labels.tolist() == LABELS["val"]
    assert has_split("torch/dtd", "test", root=tmp_path)


def test_a_set_that_is_not_divided_is_held_out_from(tmp_path: Path):
    write_tree(tmp_path / "eurosat" / "2750", {"Forest": 10, "River": 10})
    training, validation, held_out = open_train_val("torch/eurosat", root=tmp_path)
    assert held_out
    assert (len(training), len(validation)) == (18, 2)
    assert dict(pairs(validation)).keys() <= {f"train[{i}]" for i in range(20)}


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_is_not_there_is_an_error_with_its_mend(tmp_path: Path, name: str):
    with pytest.raises(FileNotFoundError, match=f"torch/{name.lower()} is not to be had in {tmp_path} .*download=True"):
        open_source(f"torch/{name}", root=tmp_path)


def test_no_root_is_an_error():
    with pytest.raises(ValueError, match="torch/mnist needs root, the folder that holds it"):
        open_source("torch/mnist")


def test_a_missing_split_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match=r"split='dev': there is none in torch/mnist; there is train, test"):
        open_source("torch/mnist", "dev", root=tmp_path)


def test_what_torchvision_cannot_download_is_told(tmp_path: Path):
    with pytest.raises(ValueError, match="torchvision cannot download ImageNet; put it into"):
        open_source("torch/imagenet", root=tmp_path, download=True)


def test_a_download_is_asked_for_only_with_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def download(self: Any) -> None:
        asked.append(str(self.root))
        write_mnist(tmp_path)

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    with pytest.raises(FileNotFoundError):
        open_source("torch/mnist", root=tmp_path)
    assert asked == []
    assert open_source("torch/mnist", root=tmp_path, download=True).labels.tolist() == LABELS["train"]
    assert asked == [str(tmp_path)]


def test_damaged_files_are_told(tmp_path: Path):
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(b"\0\0")
    with pytest.raises(ValueError, match=r"torch/mnist in .* is damaged \(.+\); fetch it again"):
        open_source("torch/mnist", root=tmp_path)


@pytest.mark.parametrize("name", ["DTD", "OxfordIIITPet", "Caltech256", "EuroSAT"])
def test_an_image_that_cannot_be_read_is_an_image_error(tmp_path: Path, name: str):
    WRITERS[name](tmp_path)
    source = open_source(f"torch/{name}", root=tmp_path)
    for path in [*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.png")]:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ImageError) as caught:
        source.open(0)
    assert "\n" not in str(caught.value)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_svhn(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ValueError, match=r"torch/svhn needs the package scipy.*; pip install scipy"):
        open_source("torch/svhn", root=tmp_path)
