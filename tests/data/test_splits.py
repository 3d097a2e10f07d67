import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from openfastervit.data import Subset, split_source
from openfastervit.data.splits import match_split
from tests.data.trees import pairs


class Names:
    """A source without images."""

    def __init__(self, names: Sequence[str], labels: Sequence[int]) -> None:
        self.names = names
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = tuple(map(str, range(max(labels, default=0) + 1)))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def open(self, index: int) -> Image.Image:
        return Image.new("L", (1, 1), index)


def numbered(labels: Sequence[int]) -> Names:
    return Names([f"{label}/{i}.png" for i, label in enumerate(labels)], labels)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_each_class_is_divided_as_asked(labels: list[int], fraction: float, seed: int):
    source = numbered(labels)
    counts = np.bincount(labels)
    if counts.max() < 2:
        with pytest.raises(ValueError, match="no class has two images"):
            split_source(source, fraction, seed)
        return
    training, held_out = split_source(source, fraction, seed)
    assert sorted(pairs(training) + pairs(held_out)) == sorted(pairs(source))
    assert all(np.array_equal(part.indices, np.sort(part.indices)) for part in (training, held_out))
    assert training.classes == held_out.classes == source.classes
    for label, count in enumerate(counts):
        out = int((held_out.labels == label).sum())
        assert out == (0 if count < 2 else np.clip(np.floor(fraction * count + 0.5), 1, count - 1))


@given(st.permutations(range(40)))
def test_what_is_held_out_depends_on_names_and_not_on_their_order(order: list[int]):
    labels = [i % 3 for i in range(40)]
    source = numbered(labels)
    shuffled = Names([source.names[i] for i in order], [labels[i] for i in order])
    assert {*pairs(split_source(shuffled, 0.3)[1])} == {*pairs(split_source(source, 0.3)[1])}


def test_another_seed_holds_out_others():
    source = numbered([0] * 100)
    parts = [frozenset(pairs(split_source(source, 0.2, seed)[1])) for seed in range(5)]
    assert len(set(parts)) == 5


def test_adding_an_image_moves_few_others():
    before = {*pairs(split_source(numbered([0] * 200), 0.1)[1])}
    after = {*pairs(split_source(numbered([0] * 210), 0.1)[1])}
    assert len(before - after) <= 2


def test_what_is_held_out_is_spread_over_a_sorted_folder():
    held_out = split_source(numbered([0] * 1000), 0.2)[1]
    assert np.histogram(held_out.indices, bins=4, range=(0, 1000))[0].min() > 30


def test_every_process_and_machine_holds_out_the_same():
    """Written down once: Python's own hashes differ from process to process."""
    held_out = split_source(numbered([i % 3 for i in range(50)]), 0.2, 7)[1]
    assert held_out.indices.tolist() == [5, 9, 15, 28, 31, 33, 35, 38, 49]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_an_error(fraction: float):
    with pytest.raises(ValueError, match="must be above 0 and below 1"):
        split_source(numbered([0, 0]), fraction)


def test_a_subset_is_those_images_in_that_order():
    source = numbered([0, 1, 2, 1])
    subset = Subset(Subset(source, [3, 2, 0]), np.array([2, 0]))
    assert pairs(subset) == [("0/0.png", "0"), ("1/3.png", "1")]
    assert [np.asarray(subset.open(i)).item() for i in range(2)] == [0, 3]
    assert pickle.loads(pickle.dumps(subset)).labels.tolist() == [0, 1]
    assert len(Subset(source, [])) == 0


@pytest.mark.parametrize("index", [4, -1])
def test_an_index_that_is_not_in_the_source_is_an_error(index: int):
    with pytest.raises(ValueError, match=f"indices: {index} is not in a source of 4 images"):
        Subset(numbered([0, 1, 2, 1]), [0, index])


def test_a_name_of_its_own_matches_nothing_else():
    assert match_split("real", ["train", "real", "val"]) == "real"
    assert match_split("real", ["train", "val"]) is None
    assert match_split("val", ["Train", "train"]) is None
