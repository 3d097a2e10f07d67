import importlib.resources
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet18_Weights

from openfastervit.data.imagenet import imagenet_classes, imagenet_descriptions, imagenet_subset, match_classes

WNIDS = imagenet_classes()
DESCRIPTIONS = tuple(imagenet_descriptions().values())
IMAGENETTE = {
    "n01440764": 0,
    "n02102040": 217,
    "n02979186": 482,
    "n03000684": 491,
    "n03028079": 497,
    "n03394916": 566,
    "n03417042": 569,
    "n03425413": 571,
    "n03445777": 574,
    "n03888257": 701,
}


def indices(name: str) -> list[int]:
    """timm's own table of the outputs that a subset has."""
    text = (importlib.resources.files("timm.data") / "_info" / f"{name}_indices.txt").read_text()
    return [int(line) for line in text.split()]


def shuffled(names: tuple[str, ...] | list[str]) -> list[str]:
    return random.Random(0).sample(names, len(names))


def test_the_order_is_imagenets():
    assert len(WNIDS) == len(set(WNIDS)) == len(DESCRIPTIONS) == 1000
    assert {wnid: WNIDS.index(wnid) for wnid in IMAGENETTE} == IMAGENETTE
    assert imagenet_descriptions()["n01440764"] == "tench, Tinca tinca"
    # Another library's table, made independently of timm's.
    theirs = ResNet18_Weights.DEFAULT.meta["categories"]
    agree = sum(ours.split(",")[0] == their for ours, their in zip(DESCRIPTIONS, theirs, strict=True))
    assert agree >= 998


@pytest.mark.parametrize("model", [1000, WNIDS, DESCRIPTIONS, ResNet18_Weights.DEFAULT.meta["categories"]])
def test_a_few_of_imagenets_classes(model: int | tuple[str, ...]):
    match = match_classes(list(IMAGENETTE), model)
    assert match.name == ("same names" if model == WNIDS else "imagenet-1k")
    assert match.labels.tolist() == list(IMAGENETTE.values())
    assert match.labels.dtype == torch.int64
    assert match.subset is None
    assert match.classes == (WNIDS if model == 1000 else tuple(model))
    logits = torch.randn(2, 1000)
    assert match.restrict(logits) is logits


def test_restricted_to_the_classes_of_the_data():
    folders = shuffled(list(IMAGENETTE))
    match = match_classes(folders, 1000, restrict=True)
    assert match.subset == tuple(IMAGENETTE.values())
    assert [match.classes[label] for label in match.labels] == folders
    logits = torch.randn(3, 1000)
    outputs = torch.tensor([IMAGENETTE[folder] for folder in folders])
    assert torch.equal(match.restrict(logits)[:, match.labels], logits[:, outputs])
    assert match.restrict(logits).shape == (3, 10)


def test_all_of_imagenet():
    assert match_classes(WNIDS, 1000).labels.tolist() == list(range(1000))
    assert match_classes(WNIDS, 1000, restrict=True).subset is None
    assert match_classes(DESCRIPTIONS, 1000).labels.tolist() == list(range(1000))
    assert match_classes(DESCRIPTIONS, DESCRIPTIONS).labels.tolist() == list(range(1000))  # two of them are "crane"
    folders = shuffled(WNIDS)
    assert match_classes(folders, DESCRIPTIONS).labels.tolist() == [WNIDS.index(wnid) for wnid in folders]


@pytest.mark.parametrize("order", [sorted, list, lambda names: [f"{name:0>4}" for name in names]])
@pytest.mark.parametrize("model", [1000, WNIDS, DESCRIPTIONS, tuple(map(str, range(1000)))])
def test_numbered_folders_are_imagenet_v2(order, model: int | tuple[str, ...]):
    folders = order([str(number) for number in range(1000)])
    match = match_classes(folders, model)
    assert match.name == ("same names" if set(folders) == set(model if model != 1000 else ()) else "imagenet-v2")
    assert match.labels.tolist() == [int(name) for name in folders]
    assert match.subset is None


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
@pytest.mark.parametrize("model", [1000, DESCRIPTIONS, WNIDS])
def test_the_200_classes_of_imagenet_a_and_r(name: str, model: int | tuple[str, ...]):
    kept = indices(name)
    folders = sorted(WNIDS[index] for index in kept)
    match = match_classes(folders, model)
    assert match.name == name.replace("_", "-")
    assert match.subset == tuple(kept)
    assert match.labels.tolist() == list(range(200))
    assert match.classes == tuple((WNIDS if model == 1000 else model)[index] for index in kept)
    logits = torch.randn(4, 1000)
    assert torch.equal(match.restrict(logits), logits[:, kept])

    whole = match_classes(folders, model, restrict=False)
    assert (whole.name, whole.subset) == (match.name, None)
    assert whole.labels.tolist() == kept

    mixed = shuffled(folders)
    match = match_classes(mixed, model)
    assert match.subset == tuple(kept)
    assert [WNIDS[match.subset[label]] for label in match.labels] == mixed
    assert match_classes(folders[1:], 1000).subset is None  # one folder is missing: it is none of the two


def test_the_subsets_are_in_the_order_of_the_outputs():
    for name in ("imagenet-a", "imagenet-r"):
        assert [WNIDS.index(wnid) for wnid in imagenet_subset(name)] == indices(name.replace("-", "_"))


def test_a_classifier_with_the_wnids_in_another_order():
    model = shuffled(WNIDS)
    match = match_classes(list(IMAGENETTE), model)
    assert [model[label] for label in match.labels] == list(IMAGENETTE)
    match = match_classes([str(number) for number in range(1000)], model)
    assert match.name == "imagenet-v2"
    assert [model[label] for label in match.labels] == list(WNIDS)
    folders = imagenet_subset("imagenet-a")
    match = match_classes(folders, model)
    assert match.name == "imagenet-a"
    assert match.subset is not None
    assert [model[match.subset[label]] for label in match.labels] == list(folders)


def test_a_classifier_of_the_200_classes_is_not_restricted():
    folders = imagenet_subset("imagenet-r")
    match = match_classes(folders, folders)
    assert (match.name, match.subset) == ("imagenet-r", None)


@given(model=st.lists(st.text(min_size=1), min_size=1, max_size=20, unique=True), data=st.data())
def test_the_same_names_are_matched_by_name(model: list[str], data: st.DataObject):
    folders = data.draw(st.lists(st.sampled_from(model), min_size=1, unique=True))
    for restrict in (None, True):
        match = match_classes(folders, model, restrict=restrict)
        assert match.name == "same names"
        assert [match.classes[label] for label in match.labels] == folders
        kept = match.restrict(torch.arange(len(model)))
        assert [model[index] for index in kept[match.labels]] == folders
        assert list(match.classes) == [model[index] for index in kept]
        assert len(match.classes) == (len(folders) if restrict else len(model))


def test_labels_become_targets():
    match = match_classes(["dog", "cat"], ["ape", "cat", "dog"])
    assert match.targets(torch.tensor([[0, 1], [1, 1]], dtype=torch.int32)).tolist() == [[2, 1], [1, 1]]
    with pytest.raises(ValueError, match="label -1 is none of the data's 2 classes"):
        match.targets(torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="label 2 is none"):
        match.targets(torch.tensor([2]))
    with pytest.raises(ValueError, match="logits of 4 outputs, but the classes were matched to 3"):
        match.restrict(torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("folders", "model", "message"),
    [
        (
            ["cat", "dog"],
            2,
            r"2 classes \('cat', 'dog'\) cannot be matched to 2 outputs without names; .* classes file",
        ),
        (["0", "1"], 2, "cannot be matched to 2 outputs"),
        (["cat", "dog"], ["ape", "cat"], r"1 of the data's 2 classes \('dog'\) are none of the classifier's 2 \('ape'"),
        (WNIDS, [f"thing {i}" for i in range(1000)], r"1000 of the data's 1000 classes .* classes file"),
        ([f"thing {i}" for i in range(1000)], 1000, "cannot be matched to 1000 outputs"),
        ([str(number) for number in range(999)], 1000, "cannot be matched to 1000 outputs"),
        ([*WNIDS[:3], ".cache"], 1000, r"1 of the data's 4 folders \('.cache'\) are none of ImageNet's classes"),
        ([*WNIDS[:3], ".cache"], DESCRIPTIONS, r"1 of the data's 4 folders \('.cache'\) are none of ImageNet's"),
        (WNIDS[:10], 10, "cannot be matched to 10 outputs without names"),
        (WNIDS[:10], [str(index) for index in range(10)], "10 of the data's 10 classes"),
        (["crane"], DESCRIPTIONS, "two classes are named 'crane'"),
        (["cat", "cat"], ["cat", "dog"], "two classes are named 'cat'"),
        ([], 1000, "the data has no classes"),
        (["cat"], 0, "model_classes=0: the classifier has no outputs"),
        (["cat"], [], "the classifier has no outputs"),
    ],
)
def test_what_is_not_certain_is_refused(folders: list[str], model: int | list[str], message: str):
    with pytest.raises(ValueError, match=message) as refusal:
        match_classes(folders, model)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_real_folders(sample_data: Path):
    folder = ImageFolder(sample_data / "imagenette-val-224")
    match = match_classes(folder.classes, 1000)
    assert dict(zip(folder.classes, match.labels.tolist(), strict=True)) == IMAGENETTE
