import io
import json
import pickle
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from openfastervit.data import ImageError, has_split, open_source, open_train_val
from openfastervit.data.shards import ShardSource, find_shards
from tests.data.test_sources import Pixels
from tests.data.trees import pairs, pixels
from tests.pocket import picture


def write_shards(pattern: Path, labels: Sequence[int], *, kind: str = "png", per_shard: int = 3) -> None:
    """With WebDataset's own writer."""
    pattern.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(pattern), maxcount=per_shard, verbose=0) as writer:
        for i, label in enumerate(labels):
            writer.write({"__key__": f"{i:04d}", kind: encoded(i, kind), "cls": label})


def write_tar(path: Path, files: Sequence[tuple[str, bytes]], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def encoded(seed: int = 0, kind: str = "png") -> bytes:
    file = io.BytesIO()
    picture(seed, (12, 10)).save(file, "jpeg" if kind == "jpg" else kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpg", "jpeg", "webp"])
def test_shards_hold_what_webdataset_reads_from_them(tmp_path: Path, kind: str):
    labels = [4, 0, 2, 2, 1, 0, 4, 3]
    write_shards(tmp_path / "%02d.tar", labels, kind=kind)
    source = open_source(tmp_path)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    expected = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len(urls) == 3
    assert len(source) == len(expected) == len(labels)
    assert source.classes == ("0", "1", "2", "3", "4")
    assert source.labels.tolist() == [sample["cls"] for sample in expected] == labels
    assert [source.name(i) for i in (0, 4)] == [f"00.tar/0000.{kind}", f"01.tar/0004.{kind}"]
    for sample, image in zip(expected, pixels(source), strict=True):
        assert np.array_equal(image, sample[kind])


KEYS = st.lists(
    st.text("ab0_-/", min_size=1, max_size=5).filter(lambda key: not key.startswith("/") and key[-1] != "/"),
    min_size=1,
    max_size=8,
    unique=True,
).filter(lambda keys: not any("//" in key for key in keys))
EXTRA = st.lists(st.sampled_from(["txt", "seg.png", "json", "b.cls", "depth.npy"]), max_size=3, unique=True)


@settings(max_examples=60)
@given(
    keys=KEYS,
    extras=st.lists(EXTRA, min_size=8, max_size=8),
    kinds=st.lists(st.sampled_from(["jpg", "PNG", "webp"]), min_size=8, max_size=8),
    style=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]),
)
def test_samples_are_grouped_as_webdataset_groups_them(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], extras: list[list[str]], kinds: list[str], style: int
):
    files = []
    for i, (key, extra, kind) in enumerate(zip(keys, extras, kinds, strict=False)):
        content = {kind: f"image {i}".encode(), "cls": str(i).encode(), **dict.fromkeys(extra, b'{"label": 9}')}
        files += [(f"{key}.{suffix}", text) for suffix, text in sorted(content.items())]
    shard = write_tar(tmp_path_factory.mktemp("shards") / "s.tar", files, format=style)
    source = ShardSource([shard])
    expected = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert source.labels.tolist() == [int(sample["cls"]) for sample in expected]
    content = shard.read_bytes()
    for i, (sample, kind) in enumerate(zip(expected, kinds, strict=False)):
        assert source.name(i) == f"s.tar/{sample['__key__']}.{kind}"
        offset, size = source._offset[i], source._size[i]
        assert content[offset : offset + size] == sample[kind.lower()]


@pytest.mark.parametrize(
    ("files", "label"),
    [
        ([("1.cls", b"3")], 3),
        ([("1.cls", b" 3\n")], 3),
        ([("1.json", b'{"label": 2}')], 2),
        ([("1.json", b'{"cls": 2, "text": "an ant"}')], 2),
        ([("1.json", b'{"label": "2"}')], 2),
        ([("1.json", b'{"label": 9}'), ("1.cls", b"1")], 1),
        ([("1.txt", b"an ant"), ("1.cls", b"1")], 1),
        ([("__index__", b"?"), ("__meta__/a.cls", b"7"), ("1.cls", b"1")], 1),
    ],
)
def test_the_label_is_found(tmp_path: Path, files: list[tuple[str, bytes]], label: int):
    before, after = files[:-1], files[-1:]
    shard = write_tar(tmp_path / "s.tar", [*before, ("1.png", encoded()), *after])
    assert ShardSource([shard]).labels.tolist() == [label]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no label; write its class, counted from 0, into a .cls beside the image"),
        ([("1.txt", b"3")], "has no label"),
        ([("1.json", b'{"name": 2}')], "has no label"),
        ([("1.json", b"[1, 2]")], "has no label"),
        ([("1.json", b'{"label":')], "its .json does not read"),
        ([("1.cls", b"ant")], "has the label 'ant'; it must be a whole number, counted from 0"),
        ([("1.cls", b"")], "has the label ''"),
        ([("1.json", b'{"label": 1.5}')], "has the label 1.5"),
        ([("1.json", b'{"label": true}')], "has the label True"),
        ([("1.json", b'{"label": 99999999999999999999}')], "has the label 99999999999999999999"),
        ([("1.cls", b"-1")], "image 0 has the label -1, which stands for none"),
        ([("1.cls", b"2000000000")], "too large for a class without a name"),
        ([("1.cls", b"1"), ("1.cls", b"1")], "has two files .cls"),
        ([("1.cls", b"1"), ("1.jpg", b"")], "has two images, 1.png and 1.jpg"),
        ([("1.cls", b"1"), ("2.cls", b"1")], "sample '2' has a label and no image"),
    ],
)
def test_a_sample_that_is_not_complete_is_an_error(tmp_path: Path, files: list[tuple[str, bytes]], message: str):
    shard = write_tar(tmp_path / "s.tar", [("1.png", encoded()), *files])
    with pytest.raises(ValueError, match=message) as caught:
        ShardSource([shard])
    assert str(shard) in str(caught.value)


def damaged(content: bytes, how: str) -> bytes:
    if how == "header":  # of the third file
        blocks = [i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"]
        return content[: blocks[2] + 10] + b"\xff" * 20 + content[blocks[2] + 30 :]
    return {
        "middle": content[: len(content) // 2],
        "end": content[:5000].rstrip(b"\0"),
        "empty": b"",
        "text": b"I am no archive.",
        "mark": content[: max(i for i in range(0, len(content), 512) if any(content[i : i + 512])) + 512],
    }[how]


@pytest.mark.parametrize("how", ["header", "middle", "end", "empty", "text", "mark"])
def test_a_damaged_shard_is_named(tmp_path: Path, how: str):
    write_shards(tmp_path / "%d.tar", [0, 1, 2, 3, 4, 5])
    shard = tmp_path / "1.tar"
    shard.write_bytes(damaged(shard.read_bytes(), how))
    with pytest.raises(ValueError, match=f"{shard} is damaged.*write or fetch it again"):
        open_source(tmp_path)


def test_a_compressed_shard_is_told(tmp_path: Path):
    with tarfile.open(tmp_path / "0.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(ValueError, match=r"0\.tar is damaged; it must be a plain tar file, not compressed"):
        open_source(tmp_path)


@settings(max_examples=200)
@given(
    changes=st.lists(st.tuples(st.integers(0, 7000), st.integers(0, 255)), max_size=4),
    end=st.none() | st.integers(0, 12_000),
    mended=st.none() | st.integers(0, 13),
)
def test_damage_of_any_kind_is_found_or_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[int, int]],
    end: int | None,
    mended: int | None,
):
    folder = tmp_path_factory.mktemp("shards")
    files = [(f"{i}.{suffix}", text) for i in range(3) for suffix, text in (("jpg", b"x" * 700), ("cls", b"1"))]
    content = bytearray(write_tar(folder / "0.tar", files).read_bytes())
    for place, value in changes:
        content[place] = value
    if mended is not None:  # so that the checksum lets the change through
        header = content[mended * 512 :][:512]
        header[148:156] = b" " * 8
        content[mended * 512 + 148 : mended * 512 + 156] = b"%06o\0 " % sum(header)
    (folder / "0.tar").write_bytes(content[:end])
    try:
        source = open_source(folder)
    except ValueError as error:
        assert str(folder) in str(error)  # noqa: PT017  an error is one of two good ends
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert 1 <= len(source) <= 3


def test_a_shard_that_changes_later_fails_by_image(tmp_path: Path):
    write_shards(tmp_path / "%d.tar", [0, 1])
    source = open_source(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(ImageError, match="its shard ends before it does"):
        source.open(1)
    (tmp_path / "0.tar").unlink()
    with pytest.raises(ImageError, match=r"its shard cannot be read \(No such file"):
        source.open(1)


def test_an_image_that_does_not_decode_is_an_image_error(tmp_path: Path):
    write_tar(tmp_path / "0.tar", [("1.png", encoded()[:60]), ("1.cls", b"0"), ("2.png", b""), ("2.cls", b"0")])
    source = open_source(tmp_path)
    with pytest.raises(ImageError, match="does not decode"):
        source.open(0)
    with pytest.raises(ImageError, match="empty"):
        source.open(1)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.txt", "ant\nbee\ncat dog\n"),
        ("classes.json", '["ant", "bee", "cat dog"]'),
        ("classes.json", '{"bee": 1, "ant": 0, "cat dog": 2}'),
        ("classes.json", '{"1": "bee", "0": "ant", "2": "cat dog"}'),
        ("_info.json", '{"splits": {}, "classes": ["ant", "bee", "cat dog"]}'),
    ],
)
@pytest.mark.parametrize("place", [".", "train"])
def test_names_of_classes_are_read(tmp_path: Path, file: str, content: str, place: str):
    write_shards(tmp_path / "train" / "%d.tar", [2, 0])
    (tmp_path / place / file).write_text(content, encoding="utf-8")
    source = open_source(tmp_path)
    assert source.classes == ("ant", "bee", "cat dog")
    assert pairs(source) == [("0.tar/0000.png", "cat dog"), ("0.tar/0001.png", "ant")]
    assert open_source(tmp_path, classes=["cat dog", "bee", "ant"]).labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classes.txt", "ant\nbee", r"image 0 has the label 2, but there are 2 classes, from 0 \(ant\) to 1 \(bee\)"),
        ("classes.txt", "ant\nant\nbee", "'ant' comes twice"),
        ("classes.json", "[1, 2, 3]", "classes.json holds no list of names; write a name a line in classes.txt"),
        ("classes.json", "{", "classes.json does not read"),
        ("classes.json", '{"ant": 0, "bee": 2}', "must number the classes 0, 1, ... without gaps"),
    ],
)
def test_names_of_classes_that_cannot_be_right_are_errors(tmp_path: Path, file: str, content: str, message: str):
    write_shards(tmp_path / "%d.tar", [2, 0])
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path)


def test_information_about_other_things_names_no_classes(tmp_path: Path):
    write_shards(tmp_path / "%d.tar", [1, 0])
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": {"num_samples": 2}}}))
    assert open_source(tmp_path).classes == ("0", "1")


def test_splits_are_told_by_the_shards_names(tmp_path: Path):
    write_shards(tmp_path / "in1k-train-%04d.tar", [0, 1, 2, 3])
    write_shards(tmp_path / "in1k-validation-%04d.tar", [1, 0])
    training, validation, held_out = open_train_val(tmp_path)
    assert not held_out
    assert training.labels.tolist() == [0, 1, 2, 3]
    assert validation.labels.tolist() == [1, 0]
    assert validation.classes == training.classes == ("0", "1", "2", "3")
    assert has_split(f"wds/{tmp_path}", "valid")
    assert len(open_source(f"wds/{tmp_path}/in1k-train-*.tar")) == 4
    with pytest.raises(ValueError, match=r"split='val': there is none in .*; there is train"):
        open_source(f"wds/{tmp_path}/in1k-train-*.tar", "val")


def test_validation_with_a_label_that_training_has_not_is_an_error(tmp_path: Path):
    write_shards(tmp_path / "train" / "%d.tar", [0, 1])
    write_shards(tmp_path / "val" / "%d.tar", [0, 2])
    with pytest.raises(ValueError, match=r"0\.tar: image 1 has the label 2, but there are 2 classes"):
        open_train_val(tmp_path)


def test_shards_of_which_only_some_tell_a_split_are_an_error(tmp_path: Path):
    write_shards(tmp_path / "train-%d.tar", [0, 1])
    write_shards(tmp_path / "more-%d.tar", [0, 1])
    with pytest.raises(ValueError, match=r"more-0.tar tells no split by its name, where train-0.tar does"):
        open_source(tmp_path)


def test_shards_that_tell_no_split_are_held_out_from(tmp_path: Path):
    write_shards(tmp_path / "%d.tar", [0, 1] * 10)
    training, validation, held_out = open_train_val(tmp_path, val_fraction=0.3)
    assert held_out
    assert (len(training), len(validation)) == (14, 6)
    assert training.name(0).endswith(".png")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a-{00..02}.tar", ["a-00", "a-01", "a-02"]),
        ("a-{02,00}.tar", ["a-02", "a-00"]),
        ("{a-0{0..1},b-00}.tar", ["a-00", "a-01", "b-00"]),
        ("a-*.tar", ["a-00", "a-01", "a-02"]),
        ("{b,a}-?0.tar", ["b-00", "a-00"]),
        ("a-01.tar", ["a-01"]),
        ("", ["a-00", "a-01", "a-02", "b-00"]),
    ],
)
def test_patterns_stand_for_shards(tmp_path: Path, pattern: str, found: list[str]):
    for name in ["a-00.tar", "a-01.tar", "a-02.tar", "b-00.tar", ".hidden.tar", "c.txt"]:
        write_tar(tmp_path / name, [("1.png", encoded()), ("1.cls", b"0")])
    assert [shard.stem for shard in find_shards(tmp_path / pattern)] == found
    assert len(open_source(f"wds/{tmp_path}/{pattern}")) == len(found)
    assert len(open_source(f"WDS/{pattern}", root=tmp_path)) == len(found) if pattern else True


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("{0..3}.tar", FileNotFoundError, r"no shard at .*/2\.tar; check the path, or the numbers in braces"),
        ("x*.tar", FileNotFoundError, r"no shard matches .*x\*\.tar"),
        ("{0..3.tar", ValueError, "its braces do not match"),
        ("empty", FileNotFoundError, r"no shards in .*empty; looked for \*\.tar"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(tmp_path: Path, pattern: str, error: type[Exception], message: str):
    (tmp_path / "empty").mkdir()
    write_shards(tmp_path / "%d.tar", [0, 1], per_shard=1)
    with pytest.raises(error, match=message):
        open_source(f"wds/{tmp_path}/{pattern}")


def test_one_tar_file_is_a_data_set_too(tmp_path: Path):
    write_shards(tmp_path / "all-%d.tar", [0, 1])
    assert len(open_source(tmp_path / "all-0.tar")) == 2


def test_an_archive_beside_class_folders_is_no_shard(tmp_path: Path):
    write_tar(tmp_path / "imagenette2.tar", [("ant/0.png", encoded())])
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "0.png").write_bytes(encoded())
    assert pairs(open_source(tmp_path)) == [("ant/0.png", "ant")]


def test_shards_in_several_folders_have_names_of_their_own(tmp_path: Path):
    for folder in ("a", "b"):
        write_shards(tmp_path / folder / "%d.tar", [0])
    source = open_source(f"wds/{tmp_path}/{{a,b}}/0.tar")
    assert [source.name(i) for i in range(2)] == ["a/0.tar/0000.png", "b/0.tar/0000.png"]


def test_a_source_of_many_shards_holds_no_file_open(tmp_path: Path):
    write_shards(tmp_path / "%03d.tar", [0] * 60, per_shard=1)
    source = pickle.loads(pickle.dumps(open_source(tmp_path)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert len(pixels(source)) == 60
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_two_workers_of_a_loader_read_shards(tmp_path: Path):
    write_shards(tmp_path / "%d.tar", list(range(10)))
    source = open_source(tmp_path)
    expected = pixels(source)  # opened before the fork, too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads, from Python 3.12 on
        read = list(DataLoader(Pixels(source), batch_size=None, num_workers=2, multiprocessing_context="fork"))
    assert [label for label, _ in read] == list(range(10))
    assert all(np.array_equal(image, wanted) for (_, image), wanted in zip(read, expected, strict=True))


def test_grayscale_is_given_where_it_is_asked_for(tmp_path: Path):
    write_shards(tmp_path / "%d.tar", [0])
    assert open_source(tmp_path, mode="L").open(0).mode == "L"
    assert isinstance(open_source(tmp_path).open(0), Image.Image)
