import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from openfastervit.data import ImageError, find_images, open_image
from tests.pocket import picture, write_broken


def close(image: Image.Image, expected: Image.Image, tolerance: int = 2) -> bool:
    difference = np.asarray(image, dtype=int) - np.asarray(expected.convert(image.mode), dtype=int)
    return image.size == expected.size and bool(np.abs(difference).max() <= tolerance)


@pytest.mark.parametrize("wanted", ["RGB", "L"])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("1", "png"),
        ("L", "png"),
        ("LA", "png"),
        ("P", "png"),
        ("RGB", "bmp"),
        ("RGB", "webp"),
        ("RGBA", "png"),
        ("CMYK", "tif"),
        ("YCbCr", "tif"),
        ("HSV", "tif"),
    ],
)
def test_every_mode_becomes_rgb_or_grayscale(tmp_path: Path, mode: str, suffix: str, wanted: str):
    original = picture(mode="RGB").convert(mode)
    path = tmp_path / f"picture.{suffix}"
    if mode == "HSV":
        original = original.convert("RGB")
    original.save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = open_image(path, wanted)
    assert image.mode == wanted
    assert close(image, original.convert("RGB") if mode == "P" else original)


def test_lab_is_converted_by_its_colours(tmp_path: Path):
    original = picture()
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(original, to_lab).save(tmp_path / "lab.tif")
    difference = np.abs(np.asarray(open_image(tmp_path / "lab.tif"), dtype=int) - np.asarray(original, dtype=int))
    assert difference.mean() < 1.5  # eight bits of Lab keep few digits of vivid colours


@pytest.mark.parametrize("wanted", ["RGB", "L"])
@pytest.mark.parametrize(
    ("dtype", "factor", "suffix"), [("uint16", 257, "png"), ("int32", 257, "tif"), ("float32", 1 / 255, "tif")]
)
def test_deep_images_are_scaled_not_clipped(tmp_path: Path, dtype: str, factor: float, suffix: str, wanted: str):
    gray = np.arange(256).reshape(16, 16)
    Image.fromarray((gray * factor).astype(dtype)).save(tmp_path / f"deep.{suffix}")
    image = open_image(tmp_path / f"deep.{suffix}", wanted)
    assert image.mode == wanted
    assert close(image, Image.fromarray(gray.astype(np.uint8)), tolerance=0)


def test_floats_above_one_are_taken_as_0_to_255(tmp_path: Path):
    Image.fromarray(np.array([[0.0, 7.0], [200.0, 300.0]], dtype=np.float32)).save(tmp_path / "float.tif")
    assert np.asarray(open_image(tmp_path / "float.tif", "L")).tolist() == [[0, 7], [200, 255]]


def test_alpha_is_dropped_as_in_training(tmp_path: Path):
    image = picture(mode="RGBA")
    image.putalpha(0)
    image.save(tmp_path / "transparent.png")
    assert close(open_image(tmp_path / "transparent.png"), picture(), tolerance=0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(("orientation", "turn"), [(3, 180), (6, 90), (8, 270)])
def test_the_cameras_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int, turn: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture()
    upright.rotate(turn, expand=True).save(tmp_path / f"turned.{suffix}", exif=exif, quality=95)
    assert close(open_image(tmp_path / f"turned.{suffix}"), upright, tolerance=12)


def test_a_damaged_exif_block_does_not_stop_a_good_picture(tmp_path: Path):
    picture().save(tmp_path / "exif.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f garbage", quality=95)
    assert close(open_image(tmp_path / "exif.jpg"), picture(), tolerance=12)


def test_an_animation_gives_its_first_frame(tmp_path: Path):
    frames = [picture(seed).quantize() for seed in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert close(open_image(tmp_path / "moving.gif"), frames[0].convert("RGB"))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif"])
def test_half_a_file_is_an_error(tmp_path: Path, suffix: str):
    with pytest.raises(ImageError, match=r"does not decode|not an image") as caught:
        open_image(write_broken(tmp_path / f"half.{suffix}", suffix))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"I am no picture.", "not an image")])
def test_what_is_no_image_is_an_error(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "no.png").write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        open_image(tmp_path / "no.png")


def test_a_file_that_went_away_is_an_error(tmp_path: Path):
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "gone.png")


def test_a_small_file_that_would_fill_the_memory_is_an_error(tmp_path: Path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="exceeds limit"):
        open_image(tmp_path / "bomb.png")


def test_images_are_found_in_order_below_a_folder(tmp_path: Path):
    wanted = ["B.JPG", "a.png", "b/1.jpeg", "b/c/2.tiff", "d.webp"]
    for name in [*wanted, "notes.txt", ".hidden.png", ".cache/x.png", "b/model.safetensors"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == [tmp_path / name for name in wanted]


def test_links_are_followed_and_loops_end(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "data" / "a.png").touch()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "back").symlink_to(tmp_path / "photos")
    assert find_images(tmp_path / "photos") == [tmp_path / "photos" / "linked" / "a.png"]


def test_a_file_is_taken_whatever_its_name(tmp_path: Path):
    (tmp_path / "upload").touch()
    assert find_images(tmp_path / "upload") == [tmp_path / "upload"]


def test_a_folder_without_images_is_an_error(tmp_path: Path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=f"no images in {tmp_path}.*\\.png"):
        find_images(tmp_path)


def test_nothing_there_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=f"no image or folder at {tmp_path / 'nowhere'}"):
        find_images(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.png").touch()
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: str):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the file system itself refuses the administrator nothing
    with pytest.raises(PermissionError, match="locked"):
        find_images(tmp_path)
