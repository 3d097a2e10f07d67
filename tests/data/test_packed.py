import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfastervit.data.packed import PackedStrings

names = st.lists(st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape")), max_size=20)


@given(names)
def test_it_gives_back_what_went_in(strings: list[str]):
    packed = pickle.loads(pickle.dumps(PackedStrings(strings)))
    assert list(packed) == strings
    assert len(packed) == len(strings)
    assert [packed[i - len(strings)] for i in range(len(strings))] == strings
    assert packed[1:-1] == strings[1:-1]


@pytest.mark.parametrize("index", [2, -3])
def test_an_index_outside_is_an_error(index: int):
    with pytest.raises(IndexError):
        PackedStrings(["a", "b"])[index]


def test_it_is_as_small_as_the_strings():
    strings = [f"n01440764/n01440764_{i:05d}.JPEG" for i in range(1000)]
    assert len(pickle.dumps(PackedStrings(strings))) < 1000 * (len(strings[0]) + 9)
