"""What of a visitor's upload is decoded, and what is said of the rest."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openfastervit.data.images import ImageError
from openfastervit.serving.page.upload import open_upload
from tests.pocket import picture, write_broken

MANY = 1_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_three_kinds_whatever_their_name(folder: Path, suffix: str):
    picture(1).save(folder / f"x.{suffix}")
    (folder / f"x.{suffix}").rename(folder / "x.exe")
    image = open_upload({"path": str(folder / "x.exe")}, folder, MANY)
    assert (image.mode, image.size) == ("RGB", (100, 80))
    assert np.abs(np.asarray(image, int) - np.asarray(picture(1), int)).mean() < 6


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_kinds_are_refused(folder: Path, kind: str):
    picture(1).save(folder / "x.png", kind)
    with pytest.raises(ImageError, match="not an image"):
        open_upload({"path": str(folder / "x.png")}, folder, MANY)


@pytest.mark.parametrize(
    "content", [b"<html><script>alert(1)</script>", b"PK\x03\x04" + bytes(100), bytes(5000), b"\xff\xd8\xff"]
)
def test_what_is_no_image_is_refused(folder: Path, content: bytes):
    (folder / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match="not an image"):
        open_upload({"path": str(folder / "x.png")}, folder, MANY)


def test_empty_cut_short_too_large(folder: Path):
    (folder / "empty.png").touch()
    with pytest.raises(ImageError, match="empty"):
        open_upload({"path": str(folder / "empty.png")}, folder, MANY)
    with pytest.raises(ImageError, match="does not decode"):
        open_upload({"path": str(write_broken(folder / "broken.png"))}, folder, MANY)
    picture(1).save(folder / "x.png")
    assert open_upload({"path": str(folder / "x.png")}, folder, 8000).size == (100, 80)
    with pytest.raises(ImageError, match="8000 pixels, more than the limit of 7999"):
        open_upload({"path": str(folder / "x.png")}, folder, 7999)


def test_a_bomb_is_refused_by_its_header(folder: Path):
    content = io.BytesIO()
    Image.new("1", (30_000, 1)).save(content, "PNG")
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + content.getvalue()[24:29]
    bomb = content.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + content.getvalue()[33:]
    (folder / "bomb.png").write_bytes(bomb)
    with pytest.raises(ImageError, match="900000000 pixels, more than the limit") as refused:
        open_upload({"path": str(folder / "bomb.png")}, folder, 50_000_000)
    assert str(folder) not in str(refused.value)


def test_only_what_was_uploaded(folder: Path):
    """Neither paths elsewhere, nor links to them, nor addresses."""
    picture(1).save(folder.parent / "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    outside: list[Any] = [
        *({"path": str(folder.parent / "secret.png")}, {"path": str(folder / ".." / "secret.png")}),
        *({"path": str(folder / "link.png")}, {"path": "https://example.com/x.png"}, {"path": "x\0.png"}),
        *({"url": str(folder / "x.png")}, {"path": 3}, {"path": None}, "x.png", ["x.png"], {"path": "\ud800"}),
    ]
    for told in outside:
        with pytest.raises(ImageError, match="no such upload"):
            open_upload(told, folder, MANY)
    with pytest.raises(ImageError, match="upload is gone") as gone:
        open_upload({"path": str(folder / "gone.png")}, folder, MANY)
    assert str(folder) not in str(gone.value)
    with pytest.raises(ImageError, match="upload is gone"):
        open_upload({"path": str(folder)}, folder, MANY)
