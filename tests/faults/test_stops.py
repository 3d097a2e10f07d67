"""What a run cannot go on with: it stops with one line that says why, and what was saved stays whole."""

import errno
import io
import json
import os
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from openfastervit.training.checkpoint_store import damage
from tests.faults.runs import (
    RECIPE,
    At,
    assert_same_end,
    fastervit,
    newest,
    saved_state,
    saved_step,
    table,
    write_data,
    write_recipe,
)
from tests.pocket import picture

pytestmark = pytest.mark.early  # one process that they are forked from


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def error(err: str) -> str:
    """The last line, which is the only one that tells of an error."""
    *before, last = err.splitlines()
    assert last.startswith("fastervit: error: "), err
    assert not any("rror" in line for line in before), err
    return last


# --- Loss and weights -------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_its_images(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path / "r.yaml", data=str(data), lr=1e30, lr_batch=None, clip_grad=None, save_steps=1)
    ended = fastervit(tmp_path / "told", "train", "--recipe", recipe, "--out", run)
    assert ended.code == 1
    told = json.loads((run / "not_finite.json").read_text())
    assert told["update"] == 2
    assert {told["loss"], told["gradient_norm"]} & {"nan", "inf"}
    assert len(told["images"]) == RECIPE["batch_size"] * RECIPE["accumulate"]
    assert all((data / "train" / name).is_file() for name in told["images"])
    last = error(ended.err)
    assert last.startswith("fastervit: error: update 2 is not finite (loss ")
    assert f"its images are {', '.join(told['images'])}; the checkpoint of update 1 is good: lower lr" in last
    assert saved_step(run) == 1
    assert damage(newest(run)) is None
    for path in newest(run).glob("*.safetensors"):
        weights = safetensors.torch.load_file(path)
        assert all(value.isfinite().all() for value in weights.values())


# --- The disk ---------------------------------------------------------------------------------------------------------


def no_more_space() -> None:
    """From now on no file grows beyond a size that a checkpoint's do."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))


@pytest.mark.parametrize("function", ["torch:save", "safetensors.torch:save_file"])
def test_a_disk_that_is_full(tmp_path: Path, data: Path, function: str) -> None:
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path / "recipe.yaml", data=str(data), save_steps=3, epochs=1)
    call = 2 if function == "torch:save" else 3  # weights are two files: those trained and their average
    moments = [At(function, call, no_more_space)]
    ended = fastervit(tmp_path / "told", "train", "--recipe", recipe, "--out", run, moments=moments)
    assert ended.code == 1
    last = error(ended.err)
    assert f"{run}/checkpoints/step-00000005/" in last
    assert last.endswith("what was saved before is whole (step 3)")
    assert (os.strerror(errno.EFBIG) in last) == (function != "torch:save")  # torch does not tell
    assert saved_step(run) == 3
    assert damage(newest(run)) is None
    ended = fastervit(tmp_path / "told", "train", "--resume", run)
    assert ended.code == 0, ended.err
    reference = tmp_path / "reference"
    assert fastervit(tmp_path / "told", "train", "--recipe", recipe, "--out", reference).code == 0
    assert_same_end(run, reference)


# --- Images -----------------------------------------------------------------------------------------------------------


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of that size by its header, with next to nothing in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def write_zoo(folder: Path) -> tuple[set[str], dict[str, str]]:
    """Images of all kinds. Returns names of those that can be read, and of the others with a part of the reason."""
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    whole = jpeg(picture(1))
    picture(2).convert("P").save(folder / "palette.png")
    picture(3, mode="L").save(folder / "gray.png")
    picture(4, mode="CMYK").save(folder / "cmyk.jpg")
    picture(5, mode="RGBA").save(folder / "alpha.png")
    Image.fromarray(np.arange(80 * 100, dtype=np.uint16).reshape(80, 100) * 8).save(folder / "sixteen.png")
    frames = [picture(seed) for seed in range(6, 9)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    (folder / "turned.jpg").write_bytes(jpeg(picture(10), exif=exif))
    read = {path.name for path in folder.iterdir()}
    broken = {
        "empty.jpg": (b"", "the file is empty"),
        "truncated.jpg": (whole[: len(whole) // 2], "does not decode"),
        "corrupt.jpg": (b"\xff\xd8" + bytes(range(256)) * 4, "not an image"),
        "text.png": (b"<html>404</html>", "not an image"),
        "bomb.png": (png_header(20_000, 20_000), "400000000 pixels, more than the limit"),
    }
    for name, (content, _) in broken.items():
        (folder / name).write_bytes(content)
    return read, {name: reason for name, (_, reason) in broken.items()}


def test_a_zoo_of_images(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=32, val=12)
    _, broken = write_zoo(data / "train" / "zoo")
    read, _ = write_zoo(data / "val" / "zoo")
    recipe = write_recipe(tmp_path / "recipe.yaml", data=str(data), epochs=1, accumulate=1, workers=2)
    run = tmp_path / "run"
    start = ("train", "--recipe", recipe, "--out")
    ended = fastervit(tmp_path / "told", *start, run, "--max-unreadable", 0.5)
    assert ended.code == 0, ended.err
    rows = table(run / "skipped.csv")
    names = {f"zoo/{name}" for name in broken}
    for split in ("train", "val"):
        assert {row["image"] for row in rows if row["split"] == split} == names  # 44 images fill 11 batches of 4
    assert len([row for row in rows if row["split"] == "val"]) == len(names)
    assert all(broken[row["image"].removeprefix("zoo/")] in row["reason"] for row in rows)
    (figures,) = table(run / "metrics.csv")
    assert int(figures["val_images"]) == 12 + len(read)
    assert int(figures["unreadable"]) == len([row for row in rows if row["split"] == "train"])
    assert f"skipped {len(rows)} images that cannot be read" in ended.err

    # More of them than are allowed.
    strict = tmp_path / "strict"
    ended = fastervit(tmp_path / "told", *start, strict, "--max-unreadable", 0.03, "--save-steps", 1)
    assert ended.code == 1
    noted = table(strict / "skipped.csv")
    why = f"{len(noted)} of 44 training images cannot be read, more than max_unreadable=0.03; skipped.csv in the run's"
    assert error(ended.err).startswith(f"fastervit: error: {why} folder names them")
    assert {row["image"] for row in noted} < names
    assert len(noted) >= 2
    ended = fastervit(tmp_path / "told", "train", "--resume", strict, "--max-unreadable", 0.5)
    assert ended.code == 0, ended.err
    assert_same_end(strict, run)


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=12, val=4)
    for path in (data / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    recipe = write_recipe(tmp_path / "recipe.yaml", data=str(data), epochs=1, max_unreadable=1.0)
    run = tmp_path / "run"
    ended = fastervit(tmp_path / "told", "train", "--recipe", recipe, "--out", run)
    assert ended.code == 1
    assert "images for one step cannot be read, nor those taken in their place" in error(ended.err)
    assert len({row["image"] for row in table(run / "skipped.csv")}) > 6
    assert not saved_step(run)
    for path in (data / "val").rglob("*.jpg"):
        path.write_bytes(b"")
    write_data(data, val=0, train=12)
    ended = fastervit(tmp_path / "told", "train", "--resume", run)
    assert ended.code == 1
    assert "no image was evaluated" in error(ended.err)
    assert {row["split"] for row in table(run / "skipped.csv")} <= {"val"}
    write_data(data, train=12, val=4)
    ended = fastervit(tmp_path / "told", "train", "--resume", run)
    assert ended.code == 0, ended.err
    assert saved_state(run)["progress"]["epoch"] == 1
