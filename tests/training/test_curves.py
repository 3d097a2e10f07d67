"""The pictures of a run, against the numbers and pixels they were made from."""

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from torchvision.transforms.v2.functional import normalize, pil_to_tensor, to_dtype

from openfastervit.training import contact_sheet
from openfastervit.training.contact_sheet import write_contact_sheet
from openfastervit.training.curves import _apart, write_curves

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# --- Curves -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    seen: list[Any] = []
    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.append(self), real(self, *a, **k))[1])
    return seen


def metrics(epochs: int, every: int = 1) -> pd.DataFrame:
    """A run that is evaluated every so many epochs, and whose top-1 is best before its end."""
    epoch = np.arange(1, epochs + 1)
    table = pd.DataFrame({"epoch": epoch, "step": 10 * epoch, "val_ece": 0.1, "val_images": 3925, "seconds": 60.0})
    table["val_top1"] = 80 - (epoch - 0.7 * epochs) ** 2 / epochs
    table["val_top5"] = table["val_top1"] + 10
    table["ema_top1"] = table["val_top1"] + 0.01
    table["val_loss"] = 1 / epoch
    table["train_mesa_loss"] = 0.5 / epoch
    table["train_loss"] = 2 / epoch
    evaluated = epoch % every == 0
    for name in ("val_top1", "val_top5", "ema_top1", "val_loss"):
        table.loc[~evaluated, name] = np.nan
    return table.assign(learning_rate=1e-3 / epoch, images_per_second=300 + epoch, data_wait=0.01 * epoch)


@pytest.mark.parametrize(("epochs", "every"), [(1, 1), (7, 3), (300, 10)])
def test_curves_are_the_columns(tmp_path: Path, drawn: list[Any], epochs: int, every: int) -> None:
    table = metrics(epochs, every)
    table.to_csv(tmp_path / "metrics.csv", index=False)
    assert write_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert (image.format, image.size) == ("PNG", (1400, 730))
    (figure,) = drawn
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    wanted = {
        "Loss": ["train_loss", "val_loss", "train_mesa_loss"],
        "Validation": ["val_top1", "val_top5", "ema_top1"],
        "Learning rate": ["learning_rate"],
        "Images a second": ["images_per_second"],
        "Waiting for data": ["data_wait"],
    }
    assert list(panels) == list(wanted)
    for title, columns in wanted.items():
        lines = [line.get_xydata() for line in panels[title].lines]
        for column, line in zip(columns, lines, strict=False):
            np.testing.assert_array_equal(line, table[["epoch", column]].dropna())
        low, high = panels[title].get_ylim()
        assert all(low <= line[:, 1].min() and line[:, 1].max() <= high for line in lines)
        assert all(tick == int(tick) for tick in panels[title].get_xticks())
    # Beside the three lines, a ring at the best epoch of each top-1.
    rings = [line.get_xydata().tolist() for line in panels["Validation"].lines[3:]]
    best = table.loc[table["val_top1"].idxmax()]
    assert rings == [[[best["epoch"], best["val_top1"]]], [[best["epoch"], best["ema_top1"]]]]
    texts = [text.get_text() for text in panels["Validation"].texts]
    last = table["val_top1"].dropna().iloc[-1]
    assert texts[0] == f"top-1 {last:.4g}" + (f", best {best['val_top1']:.4g}" if last < best["val_top1"] else "")


@pytest.mark.parametrize("epochs", [1, 7, 300])
def test_labels_are_legible(tmp_path: Path, drawn: list[Any], epochs: int) -> None:
    metrics(epochs).to_csv(tmp_path / "metrics.csv", index=False)
    write_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    (figure,) = drawn
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    inside = figure.bbox
    boxes = [text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts]
    boxes += [axes.get_window_extent(renderer) for axes in figure.axes]
    assert len(boxes) == 9 + 5
    for box in boxes:
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


def test_only_what_there_is_is_drawn(tmp_path: Path, drawn: list[Any]) -> None:
    (tmp_path / "m.csv").write_text("step,loss,lr,note\n10,2.5,,start\n20,nan,,\n30,inf,,\n")
    assert write_curves(tmp_path / "m.csv", tmp_path / "c.png")
    (axes,) = drawn[0].axes
    assert axes.get_xlabel() == "step"
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[10, 2.5]]]


def test_nothing_to_draw_is_told(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    with pytest.raises(ValueError, match="holds no epoch to draw yet"):
        write_curves(table, tmp_path / "c.png")
    table.write_text("epoch,step\n1,10\n")
    with pytest.raises(ValueError, match="has no column to draw; it has epoch, step"):
        write_curves(table, tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == [table]


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics(3).to_csv(tmp_path / "metrics.csv", index=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not write_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


@given(st.lists(st.floats(-0.2, 1.2), min_size=1, max_size=8), st.floats(0.01, 0.12))
def test_labels_are_pushed_apart(heights: list[float], gap: float) -> None:
    placed = _apart(heights, gap)
    order = np.argsort(heights, kind="stable")
    steps = np.diff(np.array(placed)[order])
    assert (steps >= gap - 1e-9).all()
    assert min(placed) >= -1e-9
    assert max(placed) <= 1 + 1e-9


# --- Images -----------------------------------------------------------------------------------------------------------


def normalised(pixels: torch.Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> torch.Tensor:
    return normalize(to_dtype(pixels, torch.float32, scale=True), list(mean), list(std))


@pytest.mark.parametrize(
    ("size", "tile"),
    [((128, 128), (256, 256)), ((32, 32), (160, 160)), ((20, 50), (80, 200)), ((224, 224), (224, 224))],
)
def test_a_sheet_shows_the_pixels(tmp_path: Path, size: tuple[int, int], tile: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (5, 3, *size), dtype=torch.uint8)
    write_contact_sheet(normalised(pixels), MEAN, STD, ["a"] * 5, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    factor = tile[0] // size[0]
    top, left = 10, 10
    shown = sheet[top : top + tile[0], left : left + tile[1]]
    np.testing.assert_array_equal(shown, np.kron(pixels[0].permute(1, 2, 0), np.ones((factor, factor, 1))))
    left += tile[1] + 10
    shown = sheet[top : top + tile[0], left : left + tile[1]]
    np.testing.assert_array_equal(shown, np.kron(pixels[1].permute(1, 2, 0), np.ones((factor, factor, 1))))


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    write_contact_sheet(torch.zeros(1, 3, 512, 1024), MEAN, STD, ["wide"], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 256 + 20
        assert sheet.getpixel((138, 74)) == tuple(round(255 * mean) for mean in MEAN)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gray_images_of_any_type(tmp_path: Path, dtype: torch.dtype) -> None:
    images = torch.tensor([-1.0, 0, 1, 9, float("nan")], dtype=dtype).view(5, 1, 1, 1).expand(5, 1, 160, 160)
    write_contact_sheet(images.requires_grad_(), (0.5,), (0.5,), [""] * 5, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    shown = [sheet.getpixel((90 + 170 * (i % 3), 90 + 204 * (i // 3))) for i in range(5)]
    assert shown == [(0, 0, 0), (128, 128, 128), (255, 255, 255), (255, 255, 255), (0, 0, 0)]


def test_captions_stay_below_their_image(tmp_path: Path) -> None:
    long = "a very long name of a class that needs more than the two lines there are, and some more words"
    for caption in (long, "x" * 200, "überlänge_" * 9, "", "  two\nlines "):
        write_contact_sheet(torch.zeros(2, 3, 160, 160), MEAN, STD, [caption, ""], tmp_path / "sheet.png")
        sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
        ink = np.argwhere((sheet < 128).all(axis=2)[171:])  # below the images
        assert (len(ink) > 0) == bool(caption)
        assert not len(ink) or (ink[:, 1].min() >= 10 and ink[:, 1].max() < 170)


def test_captions_write_more_than_ascii() -> None:
    font = contact_sheet._font()
    unknown = font.getmask("\ue000").getbbox(), bytes(font.getmask("\ue000"))
    for letter in "äßéžλЖ":
        assert (font.getmask(letter).getbbox(), bytes(font.getmask(letter))) != unknown


@pytest.mark.parametrize(
    ("shape", "mean", "captions", "told"),
    [
        ((2, 4, 8, 8), MEAN, ["", ""], "cannot be drawn"),
        ((0, 3, 8, 8), MEAN, [], "cannot be drawn"),
        ((3, 8, 8), MEAN, [""], "cannot be drawn"),
        ((1, 3, 8, 8), (0.5,), [""], "3 channels need 3 means and deviations; got 1 and 3"),
        ((2, 3, 8, 8), MEAN, [""], "2 images need 2 captions; got 1"),
    ],
)
def test_sheets_that_make_no_sense(
    tmp_path: Path, shape: tuple[int, ...], mean: tuple[float, ...], captions: list[str], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        write_contact_sheet(torch.zeros(shape), mean, STD, captions, tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []


def test_real_photographs(tmp_path: Path, sample_data: Path) -> None:
    paths = sorted((sample_data / "imagenette-val-224").glob("*/*.jpg"))[::97][:6]
    photographs = [Image.open(path).convert("RGB").resize((224, 224)) for path in paths]
    images = torch.stack([normalised(pil_to_tensor(photograph)) for photograph in photographs])
    write_contact_sheet(images, MEAN, STD, [path.parent.name for path in paths], tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    for number, photograph in enumerate(photographs):
        left, top = 10 + number % 3 * 234, 10 + number // 3 * 268
        np.testing.assert_array_equal(sheet.crop((left, top, left + 224, top + 224)), photograph)
