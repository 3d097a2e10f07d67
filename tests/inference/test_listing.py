"""Lists of images on disk: the same paths in the same order as in memory."""

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfastervit.data.images import iterate_images
from openfastervit.inference import ImageList

NAMES = st.binary(min_size=1, max_size=8).filter(
    lambda name: not set(name) & {0, ord("/")} and name not in (b".", b"..")
)


@given(st.lists(NAMES.map(os.fsdecode)), st.integers(0, 10))
def test_what_goes_in_comes_out(names: list[str], skipped: int):
    paths = [Path("photos", name) for name in names]
    with ImageList(paths) as images:
        assert len(images) == len(paths)
        assert list(images.after()) == paths
        assert list(images.after(skipped)) == paths[skipped:]
        with ImageList(iter(paths)) as again:
            assert images.digest == again.digest


@given(st.integers(0, 300), st.integers(1, 50))
def test_a_sample_is_spread_evenly(total: int, count: int):
    with ImageList(f"{number}.png" for number in range(total)) as images:
        places = [int(path.stem) for path in images.spread(count)]
    assert len(places) == min(total, count)
    gaps = {second - first for first, second in itertools.pairwise([-1, *places])}
    assert all(abs(gap - max(1, total / count)) <= 1 for gap in gaps)


def test_the_digest_tells_lists_apart():
    lists = [["a.png", "b.png"], ["b.png", "a.png"], ["a.png"], ["a.pngb.png"], ["a.png\nb.png"], ['a.png"', "b.png"]]
    digests = set()
    for paths in lists:
        with ImageList(paths) as images:
            digests.add(images.digest)
    assert len(digests) == len(lists)


def test_a_list_stays_while_its_folder_changes(tmp_path: Path):
    (tmp_path / "a.png").touch()
    with ImageList(iterate_images(tmp_path)) as images:
        (tmp_path / "b.png").touch()
        assert list(images.after()) == [tmp_path / "a.png"]


def test_an_error_of_the_walk_is_raised_at_once(tmp_path: Path):
    with pytest.raises(ValueError, match="no images in"):
        ImageList(iterate_images(tmp_path))


PARTS = st.sampled_from(["a", "b", "a.png", "a-b", "a b", "B", "é", "0", ".hidden"])


@given(st.lists(st.tuples(st.lists(PARTS, max_size=3), st.sampled_from(["a", "b.c", "a b", "z"])), min_size=1))
def test_a_walk_is_in_the_order_of_sorted_paths(tmp_path_factory: pytest.TempPathFactory, files):
    folder = tmp_path_factory.mktemp("tree")
    for parts, name in files:
        (folder.joinpath(*parts)).mkdir(parents=True, exist_ok=True)
        folder.joinpath(*parts, f"{name}.PNG").touch()
    (folder / "always.png").touch()
    visible = [path for path in folder.rglob("*.PNG") if ".hidden" not in path.parts] + [folder / "always.png"]
    assert [Path(image) for image in iterate_images(folder)] == sorted(visible)


def test_a_link_to_itself_is_an_image_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert list(iterate_images(tmp_path)) == [str(tmp_path / "loop.png")]
