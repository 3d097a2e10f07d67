import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from openfastervit.data import MAX_PIXELS, ImageError, find_images, images, open_image
from openfastervit.data.images import to_eight_bits
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
    # Pillow 12.3 cannot read a TIFF of YCbCr that it wrote without compression.
    options = {"compression": "tiff_lzw"} if mode == "YCbCr" else {"lossless": True} if suffix == "webp" else {}
    original.save(path, **options)
    image = open_image(path, wanted)
    assert image.mode == wanted
    assert close(to_eight_bits(original, wanted), image)
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


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    (image or picture()).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(header: bytes, pixels: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def claiming(kind: str, side: int) -> bytes:
    """A small file whose header tells of a large image."""
    content = bytearray(encoded(kind))
    if kind == "png":
        return png(struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0), bytes(1000))
    if kind == "jpeg":
        start = content.index(b"\xff\xc0") + 5
        content[start : start + 4] = struct.pack(">2H", side, side)
        return bytes(content[:-2])  # without the mark of its end: with it, what is missing is gray by the standard
    if kind == "gif":
        content[6:10] = struct.pack("<2H", side, side)
        start = content.index(b"\x2c", 781) + 5
        content[start : start + 4] = struct.pack("<2H", side, side)
    elif kind == "bmp":
        content[18:26] = struct.pack("<2i", side, side)
    elif kind == "ppm":
        return b"P6\n%d %d\n255\n" % (side, side) + bytes(1000)
    return bytes(content)


def test_a_small_file_that_would_fill_the_memory_is_an_error(tmp_path: Path):
    (tmp_path / "bomb.png").write_bytes(claiming("png", 20_000))
    with pytest.raises(ImageError, match=f"has 400000000 pixels, more than the limit of {MAX_PIXELS}"):
        open_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "tiff", "bmp", "ppm", "avif"])
def test_pixels_are_counted_before_any_is_decoded(kind: str):
    whole = encoded(kind)
    assert open_image(io.BytesIO(whole), max_pixels=8000).size == (100, 80)
    with pytest.raises(ImageError, match=r"^it has 8000 pixels, more than the limit of 7999$"):
        open_image(io.BytesIO(whole), max_pixels=7999)
    assert open_image(io.BytesIO(whole), max_pixels=None).size == (100, 80)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "ppm"])
def test_a_false_header_is_found_out_by_its_size_first(kind: str):
    with pytest.raises(ImageError, match="has 100000000 pixels, more than the limit of 9999999"):
        open_image(io.BytesIO(claiming(kind, 10_000)), max_pixels=9_999_999)


def test_a_false_header_takes_no_memory(tmp_path: Path):
    """12000 x 12000 is below the limit: what is not in the file must not be filled in, either."""
    kinds = ["png", "jpeg", "gif", "bmp", "ppm"]
    for kind in kinds:
        (tmp_path / kind).write_bytes(claiming(kind, 12_000))
    code = """
import resource, runpy, sys, warnings
images = runpy.run_path(sys.argv[1])  # alone: the package would bring torch
warnings.simplefilter("ignore")
for path in sys.argv[2:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        images["open_image"](path)
    except images["ImageError"] as error:
        assert "decode" in str(error), (path, error)
    else:
        raise AssertionError(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 50_000, (path, grown)  # the pixels would be 576,000 KiB
"""
    paths = [images.__file__, *(str(tmp_path / kind) for kind in kinds)]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)


def test_what_pillow_calls_a_bomb_inside_is_told_as_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"^it has 8000 pixels, more than the limit of 2000$"):
        open_image(io.BytesIO(encoded("png")), max_pixels=None)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
def test_an_open_file_is_read_as_its_path_is_and_stays_open(tmp_path: Path, kind: str):
    (tmp_path / "picture").write_bytes(encoded(kind))
    expected = np.asarray(open_image(tmp_path / "picture"))
    with open(tmp_path / "picture", "rb") as file:
        file.read(10)
        assert np.array_equal(open_image(file), expected)
        assert not file.closed
    assert np.array_equal(open_image(io.BytesIO((tmp_path / "picture").read_bytes())), expected)


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"I am no picture.", "not an image")])
def test_an_open_file_that_is_no_image_is_an_error(content: bytes, reason: str):
    with pytest.raises(ImageError, match=reason):
        open_image(io.BytesIO(content))


def test_the_image_outlives_its_file(tmp_path: Path):
    picture().save(tmp_path / "picture.png")
    image = open_image(tmp_path / "picture.png")
    (tmp_path / "picture.png").unlink()
    assert close(image.crop((10, 10, 90, 70)), picture().crop((10, 10, 90, 70)), tolerance=0)
    assert type(image) is Image.Image


MODES = ["1", "CMYK", "F", "HSV", "I", "I;16", "I;16B", "I;16L", "L", "LA", "La", "LAB", "P", "PA", "RGB", "RGBA"]
MODES += ["RGBX", "RGBa", "YCbCr"]


@pytest.mark.parametrize("wanted", ["RGB", "L"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow_is_converted(mode: str, wanted: str):
    assert to_eight_bits(Image.new(mode, (3, 2)), wanted).mode == wanted


def test_premultiplied_alpha_is_undone():
    image = Image.merge("LA", [Image.new("L", (2, 2), 200), Image.new("L", (2, 2), 128)])
    assert close(to_eight_bits(image.convert("La"), "L"), Image.new("L", (2, 2), 200))


def test_cmyk_photographs_decode(tmp_path: Path):
    original = picture().convert("CMYK")
    original.save(tmp_path / "print.jpg", quality=98)
    assert Image.open(tmp_path / "print.jpg").mode == "CMYK"
    assert close(open_image(tmp_path / "print.jpg"), original.convert("RGB"), tolerance=16)


def test_a_moving_webp_gives_its_first_frame():
    first = picture(0)
    moving = encoded("webp", first, save_all=True, append_images=[picture(1), picture(2)], lossless=True)
    assert close(open_image(io.BytesIO(moving)), first, tolerance=0)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_is_scaled_in_either_byte_order(order: str):
    gray = np.arange(256).reshape(16, 16)
    strip = (gray * 257).astype(f"{order}u2").tobytes()
    fields = [(256, 16), (257, 16), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 16), (279, len(strip))]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in fields)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(strip))
    file = head + strip + struct.pack(f"{order}H", len(fields)) + entries + bytes(4)
    assert close(open_image(io.BytesIO(file), "L"), Image.fromarray(gray.astype(np.uint8)), tolerance=0)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_png_with_colour_or_alpha_is_scaled(colour: int, channels: int):
    values = np.linspace(0, 65535, 8 * 8 * channels).reshape(8, 8 * channels).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in values)
    image = open_image(io.BytesIO(png(struct.pack(">2I5B", 8, 8, 16, colour, 0, 0, 0), lines)))
    expected = values.reshape(8, 8, channels)[..., : 3 if channels > 2 else 1] / 257
    assert np.abs(np.asarray(image) - expected).max() <= 1


def test_a_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "drawing.jpg").write_bytes(encoded("eps"))
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("Ghostscript was called"))
    with pytest.raises(ImageError, match="PostScript"):
        open_image(tmp_path / "drawing.jpg")


WHOLE = {kind: encoded(kind) for kind in ("png", "jpeg", "webp", "gif", "bmp", "avif", "jpeg2000")}


@settings(max_examples=300)
@given(
    kind=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=5),
    end=st.none() | st.integers(0, 3000),
    mode=st.sampled_from(["RGB", "L"]),
)
@pytest.mark.filterwarnings("ignore")
def test_damage_of_any_kind_is_an_image_error_or_none(
    kind: str, changes: list[tuple[int, int]], end: int | None, mode: str
):
    content = bytearray(WHOLE[kind])
    for place, value in changes:
        content[place % len(content)] = value
    try:
        image = open_image(io.BytesIO(bytes(content[:end])), mode, max_pixels=10**6)
    except ImageError:
        return
    assert image.mode == mode
    assert len(image.tobytes()) == image.width * image.height * len(mode)


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
