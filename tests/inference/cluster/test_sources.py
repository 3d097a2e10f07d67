"""What a location stands for, as shards; tar files beside what WebDataset reads from them."""

import io
import pickle
import tarfile
from pathlib import Path

import fsspec
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from openfastervit.data.images import ImageError, find_images
from openfastervit.inference.cluster.sources import Item, Remote, Source, find_source
from openfastervit.inference.cluster.tar import read_tar
from tests.inference.cluster.data import encoded, write_folder, write_shards, write_tar


def items(source: Source) -> list[list[Item]]:
    """Of each shard, after a journey to another process."""
    return [list(pickle.loads(pickle.dumps(shard)).items()) for shard in source.shards]


@given(sizes=st.integers(1, 12), count=st.integers(5, 9))
@settings(max_examples=15)
def test_a_folder_is_cut_into_blocks_of_its_listing(tmp_path_factory: pytest.TempPathFactory, sizes: int, count: int):
    folder = write_folder(tmp_path_factory.mktemp("images") / "photos", count)
    source = find_source(str(folder), sizes)
    found = items(source)
    assert [len(block) for block in found[:-1]] == [sizes] * (len(found) - 1)
    assert 1 <= len(found[-1]) <= sizes
    assert [item.image for block in found for item in block] == [str(path) for path in find_images(folder)]
    assert all(item.content == Path(item.image) for block in found for item in block)
    assert source.images == count
    assert len({shard.name for shard in source.shards}) == len(found)


def test_relative_names_stay_but_are_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_folder(tmp_path / "photos", 5)
    monkeypatch.chdir(tmp_path)
    (block,) = items(find_source("photos", 10))
    monkeypatch.chdir("/")
    assert block[0].image == "photos/000.png"
    assert block[0].content == tmp_path / "photos" / "000.png"


def test_a_listing_is_known_by_its_names_and_their_order(tmp_path: Path):
    folder = write_folder(tmp_path / "photos", 6)
    first = find_source(str(folder), 4)
    assert find_source(str(folder), 3).digest == first.digest == find_source(f"file://{folder}", 4).digest
    (folder / "005.png").rename(folder / "z.png")
    assert find_source(str(folder), 4).digest != first.digest


def test_folders_of_a_store_follow_the_rules_of_those_on_disk(tmp_path: Path):
    names = ["b/2.png", "b/.hidden.png", ".h/x.png", "a.jpg", "b-/1.webp", "notes.txt", "b/1.PNG", "b/c/d.tar.png"]
    store = fsspec.filesystem("memory")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
        store.pipe_file(f"/rules/{name}", b"1")
    found = [item for block in items(find_source("memory://rules", 2)) for item in block]
    expected = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert [item.image for item in found] == [f"memory:///rules/{name}" for name in expected]
    assert all(item.content == Remote(item.image) for item in found)
    assert [item.image for item in items(find_source("memory://rules/a.jpg", 2))[0]] == ["memory:///rules/a.jpg"]


def test_shards_are_tar_files_wherever_they_are(tmp_path: Path):
    write_shards(tmp_path / "set", 8, 3)
    store = fsspec.filesystem("memory")
    for path in (tmp_path / "set").iterdir():
        store.pipe_file(f"/shards/deep/{path.name}", path.read_bytes())
    here = find_source(str(tmp_path / "set"), 99)
    for other in (
        find_source(str(tmp_path / "set" / "some-{0000..0002}.tar"), 99),
        find_source(str(tmp_path / "set" / "*.tar"), 99),
        find_source("memory://shards/deep", 99),
        find_source("memory://shards/deep/*.tar", 99),
        find_source("memory://shards/deep/some-{0000..0002}.tar", 99),
    ):
        assert other.digest == here.digest
        assert items(other) == items(here)
    assert [shard.name for shard in here.shards] == ["some-0000.tar", "some-0001.tar", "some-0002.tar"]
    assert here.images is None
    assert [item.image for item in items(here)[1]] == [f"some-0001.tar/in/{i:03}" for i in (3, 4, 5)]


def test_shards_of_one_name_in_two_folders_stay_apart(tmp_path: Path):
    for split in ("one", "two"):
        write_shards(tmp_path / split, 2, 3)
    source = find_source(str(tmp_path / "*" / "some-0000.tar"), 99)
    assert [shard.name for shard in source.shards] == ["one/some-0000.tar", "two/some-0000.tar"]


@pytest.mark.parametrize(
    ("location", "kind", "says"),
    [
        ("nowhere", FileNotFoundError, "no image or folder at nowhere"),
        ("nowhere.tar", FileNotFoundError, "no shard at nowhere.tar"),
        ("memory://nowhere", FileNotFoundError, "no image or folder at memory://nowhere"),
        ("memory://nowhere/{1..2}.tar", FileNotFoundError, "no shard at memory://nowhere/1.tar"),
        ("memory://texts", ValueError, "no images in memory://texts"),
        ("memory://both", ValueError, r"memory://both holds tar files \(1.tar\) and images \(1.jpg\)"),
        ("ftpx://somewhere", ValueError, "ftpx://somewhere cannot be opened"),
    ],
)
def test_what_is_not_there_is_named(location: str, kind: type[Exception], says: str):
    store = fsspec.filesystem("memory")
    for name in ("texts/1.txt", "both/1.tar", "both/1.jpg"):
        store.pipe_file(f"/{name}", b"1")
    with pytest.raises(kind, match=says):
        find_source(location, 10)


def test_tar_files_and_images_beside_each_other_are_not_guessed_at(tmp_path: Path):
    write_shards(tmp_path / "set", 2, 3)
    (tmp_path / "set" / "1.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds tar files \(some-0000.tar\) and images \(1.jpg\); give '.*/\*.tar'"):
        find_source(str(tmp_path / "set"), 10)
    assert len(find_source(str(tmp_path / "set" / "*.tar"), 10).shards) == 1


# --- Tar files ------------------------------------------------------------------------------------------------------

KEYS = st.lists(st.from_regex(r"[ab0_]{1,3}(/[ab0_-]{1,3})?", fullmatch=True), min_size=1, max_size=6, unique=True)
OTHERS = st.lists(st.sampled_from(["txt", "seg.png", "json", "cls", "b.cls"]), max_size=3, unique=True)


@settings(max_examples=40)
@given(keys=KEYS, others=st.lists(OTHERS, min_size=6, max_size=6), kind=st.sampled_from(["jpg", "PNG", "webp"]))
def test_keys_and_files_are_those_that_webdataset_reads(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], others: list[list[str]], kind: str
):
    files = []
    for number, key in enumerate(keys):
        names = [*others[number], kind] if number % 2 else [kind, *others[number]]
        files += [(f"{key}.{name}", f"{key} {name}".encode()) for name in names]
    path = write_tar(tmp_path_factory.mktemp("tar") / "a.tar", files)
    expected = [(s["__key__"], s[kind.lower()]) for s in webdataset.WebDataset(str(path), shardshuffle=False)]
    with path.open("rb") as file:
        assert list(read_tar(file)) == expected


def test_a_second_image_of_a_sample_is_told():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("a.jpg", "a.txt", "a.png", "b.png"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    content.seek(0)
    found = list(read_tar(content))
    assert [name for name, _ in found] == ["a", "a.png", "b"]
    assert isinstance(found[1][1], ImageError)
    assert str(found[1][1]) == "its sample has another image, a.jpg; keep one"


@given(cut=st.integers(0, 6144))
@settings(max_examples=60)
def test_however_a_shard_is_cut_off_what_came_before_is_read_and_the_damage_told(cut: int):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = 700
            archive.addfile(member, io.BytesIO(bytes([number]) * 700))
    found = list(read_tar(io.BytesIO(content.getvalue()[:cut])))
    whole = [(str(number), bytes([number]) * 700) for number in range(3) if cut >= 1536 * number + 512 + 700]
    assert [(name, data) for name, data in found if isinstance(data, bytes)] == whole
    told = [(name, str(data)) for name, data in found if isinstance(data, ImageError)]
    if cut >= 4608 + 512:  # a block of zeros is the end
        assert told == []
    else:
        assert told[-1][0] == ""
        assert "the shard is damaged" in told[-1][1]


@pytest.mark.parametrize("kind", ["w:gz", "nonsense"])
def test_what_is_no_plain_tar_file_is_told(tmp_path: Path, kind: str):
    path = tmp_path / "a.tar"
    if kind == "nonsense":
        path.write_bytes(b"nonsense" * 200)
    else:
        with tarfile.open(path, kind) as archive:
            archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with path.open("rb") as file:
        ((name, error),) = read_tar(file)
    assert name == ""
    assert "it must be a plain tar file, not compressed" in str(error)


def test_a_file_larger_than_any_image_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("openfastervit.inference.cluster.tar.MAX_BYTES", 100)
    path = write_tar(tmp_path / "a.tar", [("a.png", bytes(101)), ("b.png", bytes(100))])
    with path.open("rb") as file:
        (_, error), (_, content) = read_tar(file)
    assert str(error) == "its file has 101 bytes, more than the limit of 100"
    assert content == bytes(100)


def test_encoded_pictures_differ():
    assert len({encoded(number) for number in range(5)}) == 5
