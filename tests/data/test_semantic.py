import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from openfastervit.data.images import ImageError
from openfastervit.data.loader import AnnotatedImages, Place
from openfastervit.data.semantic import CAMVID, IGNORE, SemanticImages, open_semantic
from tests.data.label_trees import SIZE, label_map, write_pairs
from tests.pocket import picture, write_broken


def names(source: SemanticImages) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def generic(folder: Path, *maps: np.ndarray, split: str = "train") -> Path:
    write_pairs(folder / "images" / split, folder / "labels" / split, {str(i): m for i, m in enumerate(maps)})
    return folder


# --- Layouts


@pytest.mark.parametrize("labels", ["labels", "annotations", "masks"])
@pytest.mark.parametrize("split_first", [False, True])
def test_usual_layouts_are_found(tmp_path: Path, labels: str, split_first: bool):
    for split, seed in (("train", 0), ("val", 5)):
        folders = [tmp_path / split / kind if split_first else tmp_path / kind / split for kind in ("images", labels)]
        write_pairs(folders[0], folders[1], {"b": label_map(seed), "a": label_map(seed + 1)})
    source = open_semantic(tmp_path, "val")
    assert names(source) == [f"val/images/{n}.jpg" if split_first else f"images/val/{n}.jpg" for n in "ab"]
    assert source.classes == ("0", "1", "2")
    assert source.open(0).size == SIZE
    assert source.open(0).mode == "RGB"
    assert np.array_equal(source.labels(0), label_map(6))
    assert np.array_equal(source.labels(1), label_map(5))
    assert source.labels(0).dtype == np.uint8
    assert names(open_semantic(str(tmp_path), "validation")) == names(source)


def test_segnets_layout_is_found_and_nested_folders_too(tmp_path: Path):
    write_pairs(tmp_path / "train", tmp_path / "trainannot", {"x/0": label_map(0), "y/0": label_map(1)}, ".png")
    source = open_semantic(tmp_path, "train")
    assert names(source) == ["train/x/0.png", "train/y/0.png"]
    assert np.array_equal(source.labels(1), label_map(1))


def test_text_files_of_another_task_are_no_label_maps(tmp_path: Path):
    write_pairs(tmp_path / "images/train", tmp_path / "masks/train", {"a": label_map(0)})
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text("0 0.5 0.5 1 1")
    assert np.array_equal(open_semantic(tmp_path, "train").labels(0), label_map(0))


def test_camvid_is_known_by_its_files(tmp_path: Path):
    values = label_map(0, 12)
    write_pairs(tmp_path / "train", tmp_path / "trainannot", {"0001TP_006690": values, "Seq05VD_f00000": values})
    source = open_semantic(tmp_path, "train")
    assert source.classes == CAMVID
    assert np.array_equal(source.labels(0), np.where(values == 11, 255, values))
    void = open_semantic(tmp_path, "train", num_classes=12)  # void as a class
    assert void.classes == tuple(map(str, range(12)))
    assert np.array_equal(void.labels(0), values)


def test_camvid_photographs(sample_data: Path):
    sizes = []
    for split in ("train", "val", "test"):
        source = open_semantic(sample_data / "camvid", split)
        sizes.append(len(source))
        assert source.classes == CAMVID
        with Image.open(sample_data / "camvid" / source.name(3).replace("images", "labels").replace("jpg", "png")) as f:
            values = np.asarray(f)
        assert np.array_equal(source.labels(3), np.where(values == 11, 255, values))
        assert (values == 11).any()
        assert source.labels(3).shape == (360, 480) == source.open(3).size[::-1]
    assert sizes == [367, 101, 233]


ADE = {"ADE_train_00000001": np.array([[0, 1, 150], [2, 0, 75]]), "ADE_train_00000002": np.array([[3, 3, 0]])}


def test_ade20k_is_known_by_its_files(tmp_path: Path):
    for split in ("training", "validation"):
        write_pairs(tmp_path / "images" / split, tmp_path / "annotations" / split, ADE)
    source = open_semantic(tmp_path, "val")
    assert names(source) == [f"images/validation/{name}.jpg" for name in ADE]
    assert source.classes == tuple(f"class {i}" for i in range(150))
    assert source.labels(0).tolist() == [[255, 0, 149], [1, 255, 74]]
    assert open_semantic(tmp_path, "train", classes=source.classes).classes == source.classes
    named = open_semantic(tmp_path, "train", classes=[f"thing {i}" for i in range(150)])
    assert named.classes[149] == "thing 149"
    plain = open_semantic(tmp_path, "train", reduce_zero_label=False)
    assert plain.classes == tuple(map(str, range(151)))
    assert plain.labels(0).tolist() == ADE["ADE_train_00000001"].tolist()
    with pytest.raises(ValueError, match=r"19 names, but .* has 150 classes"):
        open_semantic(
            tmp_path, "train", classes=[f"thing {i}" for i in range(19)], reduce_zero_label=True, num_classes=150
        )


def test_ade20ks_table_gives_its_names(tmp_path: Path):
    write_pairs(tmp_path / "images/training", tmp_path / "annotations/training", {"a": np.array([[0, 2]])})
    rows = [f"{i}\t0.1\t9\t9\tthing {i}, other word \n" for i in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "".join(rows))
    source = open_semantic(tmp_path, "train")
    assert source.classes == tuple(f"thing {i}" for i in range(1, 151))
    assert source.labels(0).tolist() == [[255, 1]]
    (tmp_path / "objectInfo150.txt").write_text("Idx\tName\n" + "".join(rows[:3]))
    with pytest.raises(ValueError, match="names 3 classes, ADE20K has 150"):
        open_semantic(tmp_path, "train")


def test_what_is_only_laid_out_as_ade20k_must_say_what_0_means(tmp_path: Path):
    write_pairs(tmp_path / "images/training", tmp_path / "annotations/training", {"a": np.array([[0, 1, 2]])})
    with pytest.raises(ValueError, match=r"is laid out as ADE20K.*give num_classes: 150 for ADE20K"):
        open_semantic(tmp_path, "train")
    assert open_semantic(tmp_path, "train", num_classes=3).labels(0).tolist() == [[0, 1, 2]]
    assert open_semantic(tmp_path, "train", reduce_zero_label=False).classes == ("0", "1", "2")
    for ade in ({"num_classes": 150}, {"classes": [f"thing {i}" for i in range(150)]}):
        assert open_semantic(tmp_path, "train", **ade).labels(0).tolist() == [[255, 0, 1]]
    reduced = open_semantic(tmp_path, "train", reduce_zero_label=True)
    assert (reduced.classes, reduced.labels(0).tolist()) == (("0", "1"), [[255, 0, 1]])
    (tmp_path / "classes.txt").write_text("one\ntwo\nthree")
    assert open_semantic(tmp_path, "train").labels(0).tolist() == [[0, 1, 2]]


# --- Classes


def test_names_are_those_in_a_file_beside_the_data(tmp_path: Path):
    generic(tmp_path, label_map(0))
    (tmp_path / "classes.txt").write_text("\ufeffroad\n  wide river \r\nbank\n\n", "utf-8")
    assert open_semantic(tmp_path, "train").classes == ("road", "wide river", "bank")
    with pytest.raises(ValueError, match=r"4 classes are asked for, but .*classes.txt names 3"):
        open_semantic(tmp_path, "train", num_classes=4)
    (tmp_path / "classes.txt").write_text("road\nbank\nroad\n")
    with pytest.raises(ValueError, match="'road' comes twice"):
        open_semantic(tmp_path, "train")


def test_wanted_classes_are_found_by_name(tmp_path: Path):
    values = label_map(0)
    generic(tmp_path, values)
    (tmp_path / "classes.txt").write_text("road\nriver\nbank")
    wanted = ["bank", "sky", "road", "river"]
    source = open_semantic(tmp_path, "train", classes=wanted)
    assert source.classes == tuple(wanted)
    found = source.labels(0)
    for value, name in enumerate(["road", "river", "bank"]):
        assert (found[values == value] == wanted.index(name)).all()
    with pytest.raises(ValueError, match="class 'river' is not among the 2 known ones"):
        open_semantic(tmp_path, "train", classes=["road", "bank"])
    numbered = open_semantic(tmp_path, "train", classes=["0", "1", "2"])  # a checkpoint from before the names
    assert np.array_equal(numbered.labels(0), values)
    with pytest.raises(ValueError, match="2 classes are asked for"):
        open_semantic(tmp_path, "train", classes=["0", "1"])


def test_names_for_data_that_has_none_go_by_position(tmp_path: Path):
    source = open_semantic(generic(tmp_path, label_map(0)), "train", classes=["c", "b", "a", "d"])
    assert source.classes == ("c", "b", "a", "d")
    assert np.array_equal(source.labels(0), label_map(0))
    with pytest.raises(ValueError, match=r"4 names, but .* has 5 classes"):
        open_semantic(tmp_path, "train", classes=["c", "b", "a", "d"], num_classes=5)
    for wrong in ("abc", [], ["a", "a"]):
        with pytest.raises(ValueError, match="classes: "):
            open_semantic(tmp_path, "train", classes=wrong)


def test_the_number_of_classes_follows_from_all_splits(tmp_path: Path):
    generic(tmp_path, np.array([[0, 1, 255]]))
    generic(tmp_path, np.array([[4, 9, 0]]), split="val")
    write_broken(tmp_path / "labels/val/0b.png")
    picture(0).save(tmp_path / "images/val/0b.png")
    assert len(open_semantic(tmp_path, "train").classes) == 10
    assert len(open_semantic(tmp_path, "train", ignore_label=9).classes) == 5
    assert len(open_semantic(tmp_path, "train", reduce_zero_label=True).classes) == 9
    assert len(open_semantic(tmp_path, "train", num_classes=30).classes) == 30


@pytest.mark.parametrize("count", [0, -2, 256])
def test_a_number_of_classes_out_of_range_is_refused(tmp_path: Path, count: int):
    with pytest.raises(ValueError, match=r"num_classes=|more than the 255"):
        open_semantic(generic(tmp_path, label_map(0)), "train", num_classes=count)


def test_no_class_at_all_and_too_many_are_told(tmp_path: Path):
    with pytest.raises(ValueError, match="no label map has a class in it; give num_classes"):
        open_semantic(generic(tmp_path / "none", np.full((2, 2), 255)), "train")
    with pytest.raises(ValueError, match="no label map has a class in it"):
        open_semantic(generic(tmp_path / "zeros", np.zeros((2, 2))), "train", reduce_zero_label=True)
    folder = generic(tmp_path / "many", label_map(0))
    Image.fromarray(np.full(SIZE[::-1], 300, dtype=np.uint16)).save(folder / "labels/train/0.png")
    with pytest.raises(ValueError, match=r"labels/train/0.png holds the value 300.*ignore_label=300"):
        open_semantic(folder, "train")
    assert (open_semantic(folder, "train", num_classes=2, ignore_label=300).labels(0) == IGNORE).all()


# --- Label maps


def test_a_palette_is_read_as_indices(tmp_path: Path):
    values = label_map(3, 7)
    generic(tmp_path, values)
    image = Image.fromarray(values, mode=None).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([(37 * i) % 256 for i in range(768)])
    image.save(tmp_path / "labels/train/0.png", transparency=2)
    with Image.open(tmp_path / "labels/train/0.png") as written:
        assert written.mode == "P"
        assert not np.array_equal(np.asarray(written.convert("L")), values)
    assert np.array_equal(open_semantic(tmp_path, "train").labels(0), values)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_read(tmp_path: Path, suffix: str):
    values = label_map(3, 7).astype(np.uint16)
    values[0, :2] = 255, 1000
    generic(tmp_path, label_map(0))
    (tmp_path / "labels/train/0.png").unlink()
    Image.fromarray(values).save(tmp_path / f"labels/train/0{suffix}")
    found = open_semantic(tmp_path, "train", num_classes=7, ignore_label=1000).labels(0)
    expected = values.copy()
    expected[0, :2] = 255
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", [0, 3])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_a_pixel_hold_the_numbers_that_were_written(tmp_path: Path, bits: int, kind: int):
    """A PNG written by hand, gray or with a palette: Pillow writes no grays of 2 and 4 bits."""
    values = label_map(4, min(2**bits, 16))
    generic(tmp_path, values)
    rows = b""
    for row in values:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, bits, kind, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(range(3 * 2**bits))[::-1] if bits < 8 else bytes(768)) if kind == 3 else b""
    path = tmp_path / "labels/train/0.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert np.array_equal(open_semantic(tmp_path, "train", num_classes=16).labels(0), values)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "F"])
def test_colours_in_place_of_indices_are_refused(tmp_path: Path, mode: str):
    folder = generic(tmp_path, label_map(0))
    suffix = "png" if mode in ("RGB", "RGBA", "LA") else "tif"
    (folder / "labels/train/0.png").unlink()
    Image.new(mode, SIZE).save(folder / f"labels/train/0.{suffix}")
    source = open_semantic(folder, "train", num_classes=3)
    with pytest.raises(ImageError, match=rf"labels/train/0.{suffix} is of the mode {mode}, colours .*palette PNG"):
        source.labels(0)


@pytest.mark.parametrize(("value", "ignored"), [(3, {}), (7, {"ignore_label": 6})])
def test_a_value_that_is_no_class_is_named(tmp_path: Path, value: int, ignored: dict[str, int]):
    values = np.ones(SIZE[::-1])
    values[4, 7] = value
    source = open_semantic(generic(tmp_path, values), "train", num_classes=3, **ignored)
    with pytest.raises(ImageError, match=rf"labels/train/0.png holds the value {value} at row 4, column 7") as caught:
        source.labels(0)
    assert "the 3 classes are 0 to 2" in str(caught.value)
    assert f"give ignore_label={value}" in str(caught.value)
    mended = open_semantic(tmp_path, "train", num_classes=3, ignore_label=value)
    assert mended.labels(0)[4, 7] == IGNORE


def test_a_negative_value_is_named(tmp_path: Path):
    generic(tmp_path, label_map(0))
    (tmp_path / "labels/train/0.png").unlink()
    Image.fromarray(np.full(SIZE[::-1], -1, dtype=np.int32)).save(tmp_path / "labels/train/0.tif")
    with pytest.raises(ImageError, match="holds the value -1"):
        open_semantic(tmp_path, "train", num_classes=3).labels(0)


def test_a_label_map_of_another_size_is_named(tmp_path: Path):
    generic(tmp_path, label_map(0))
    picture(0, (24, 20)).save(tmp_path / "images/train/0.jpg")
    with pytest.raises(ImageError, match=r"labels/train/0.png has 12 x 10 pixels and the image 24 x 20"):
        open_semantic(tmp_path, "train").labels(0)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_image_turned_by_its_camera_has_labels_that_stand_upright(tmp_path: Path, suffix: str):
    generic(tmp_path, label_map(0))
    (tmp_path / "images/train/0.jpg").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, SIZE[::-1]).save(tmp_path / f"images/train/0.{suffix}", exif=exif)
    source = open_semantic(tmp_path, "train")
    assert source.open(0).size == SIZE
    assert np.array_equal(source.labels(0), label_map(0))


def test_files_that_do_not_decode_or_are_gone_are_named(tmp_path: Path):
    source = open_semantic(generic(tmp_path, *map(label_map, range(3))), "train")
    write_broken(tmp_path / "labels/train/0.png")
    (tmp_path / "labels/train/1.png").unlink()
    (tmp_path / "images/train/2.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"its label map labels/train/0.png "):
        source.labels(0)
    with pytest.raises(ImageError, match=r"its label map labels/train/1.png: there is no such file"):
        source.labels(1)
    for read in (source.labels, source.open):
        with pytest.raises(ImageError):
            read(2)


# --- Files


def test_what_has_no_counterpart_is_left_out_and_named(tmp_path: Path):
    generic(tmp_path, label_map(0), label_map(1), label_map(2))
    (tmp_path / "images/train/0.jpg").unlink()
    (tmp_path / "labels/train/2.png").unlink()
    with pytest.warns(UserWarning, match="left out") as warned:
        source = open_semantic(tmp_path, "train")
    told = [str(warning.message) for warning in warned]
    assert len(told) == 2
    assert "1 images without a label map are left out (images/train/2.jpg)" in told[0]
    assert "1 label maps alone are left out (labels/train/0.png)" in told[1]
    assert names(source) == ["images/train/1.jpg"]


def test_no_pairs_doubled_names_and_jpeg_label_maps_are_refused(tmp_path: Path):
    generic(tmp_path / "none", label_map(0))
    os.replace(tmp_path / "none/labels/train/0.png", tmp_path / "none/labels/train/0_L.png")
    with pytest.raises(ValueError, match=r"no image in images/train \(0\) has a label map of the same name"):
        open_semantic(tmp_path / "none", "train")
    generic(tmp_path / "twice", label_map(0))
    picture(0, SIZE).save(tmp_path / "twice/images/train/0.bmp")
    with pytest.raises(ValueError, match=r"images/train/0\.\w+ and images/train/0\.\w+ have the same name"):
        open_semantic(tmp_path / "twice", "train")
    generic(tmp_path / "lossy", label_map(0))
    os.replace(tmp_path / "lossy/labels/train/0.png", tmp_path / "lossy/labels/train/0.jpg")
    with pytest.raises(ValueError, match=r"0.jpg: JPEG changes the values"):
        open_semantic(tmp_path / "lossy", "train")


def test_unknown_folders_and_splits_are_told(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no folder at .*nowhere; check the path"):
        open_semantic(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match=r"no images with label maps in a layout known here.*images/SPLIT"):
        open_semantic(tmp_path, "train")
    generic(tmp_path, label_map(0))
    with pytest.raises(ValueError, match=r"split='val': there is none in .*there is train"):
        open_semantic(tmp_path, "val")
    with pytest.raises(ValueError, match="ignore_label=-1 must be"):
        open_semantic(tmp_path, "train", ignore_label=-1)


# --- At work


class Read(Dataset[tuple[np.ndarray, np.ndarray]]):
    def __init__(self, source: SemanticImages) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.source.open(index)), self.source.labels(index)


def test_workers_read_the_same(tmp_path: Path):
    source = open_semantic(generic(tmp_path, *map(label_map, range(4))), "train")
    again = pickle.loads(pickle.dumps(source))
    loader = DataLoader(Read(again), batch_size=None, num_workers=2)
    for index, (image, labels) in enumerate(loader):
        assert np.array_equal(image, np.asarray(source.open(index)))
        assert np.array_equal(labels, label_map(index))


def test_the_loader_names_bad_label_maps_and_goes_on(tmp_path: Path):
    source = open_semantic(
        generic(tmp_path, label_map(0), label_map(1), np.full(SIZE[::-1], 77)), "train", num_classes=3
    )
    images = AnnotatedImages(source, source.labels, lambda image, labels: (image, labels), training=True)
    sample = images[Place(2, 0, 0)]
    assert sample.unreadable[0].name == "images/train/2.jpg"
    assert "labels/train/2.png holds the value 77" in sample.unreadable[0].reason
    assert sample.name in ("images/train/0.jpg", "images/train/1.jpg")
    assert np.array_equal(sample.target, label_map(int(Path(sample.name).stem)))
