import io
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from openfastervit.inference.explain import CarrierAttention, Explanation, explain
from openfastervit.inference.explain.picture import draw, evenly, overlay, spread
from tests.inference.explain.models import WINDOWED
from tests.networks import images, tiny

CLASSES = tuple(f"class {i}" for i in range(10))


def explained(*size: int, classes: tuple[str, ...] = CLASSES, target: int | None = None, **options) -> Explanation:
    model = tiny(**{**WINDOWED, **options}).eval()
    x = images(*size, batch=1, channels=model.in_chans)
    pixels = (x[0] * 50 + 128).clamp(0, 255).to(torch.uint8)
    return explain(model, x, pixels, classes, target=target)


def decoded(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def amber(picture: np.ndarray) -> int:
    return int(((picture[..., 0] - picture[..., 2]) > 60).sum())


def blue(picture: np.ndarray) -> int:
    """Pixels of the frames."""
    return int((abs(picture - (96, 200, 255)).max(axis=-1) < 8).sum())


@pytest.mark.parametrize("size", [(128, 128), (64, 256), (300, 96)])
def test_every_shape_is_drawn(size):
    picture = decoded(draw(explained(*size), "a photograph"))
    assert picture.shape[1] > 1000
    assert amber(picture) > 5000
    assert blue(picture) > 500
    assert (picture[:20] == 255).all()
    assert (picture[-5:] == 255).all()


def test_one_image_gives_one_picture():
    first = draw(explained(128, 128, target=3), "a")
    assert draw(explained(128, 128, target=3), "a") == first
    assert draw(explained(128, 128, target=4), "a") != first


@pytest.mark.parametrize(
    ("options", "carriers", "windows"),
    [
        ({"hierarchical": (False,) * 4}, "the network has no carrier tokens", ""),
        ({"without": ("carrier_attention",)}, "do not attend to one another", ""),
        ({"attention": ("global", "twins")}, "no carrier tokens", "no stage of the network attends inside windows"),
    ],
)
def test_what_is_not_there_is_said(options, carriers, windows):
    told = explained(128, 128, **options)
    assert carriers in told.no_carriers
    assert windows in told.no_windows
    assert bool(told.windows) != bool(windows)
    assert not told.carriers
    picture = decoded(draw(told))
    assert blue(picture) == 0
    assert len(picture) < 0.75 * len(decoded(draw(explained(128, 128))))


def test_grayscale_networks_and_names_of_all_kinds():
    names = ("a very long name of a class that would not fit", "$x_1$", "\u9c7c", "two\nlines", *"efghij")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded(draw(explained(128, 128, classes=names, target=2, in_chans=1), "$\\frac{$ \udcff"))


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    told = explained(128, 128)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"openfastervit\[explain\]"):
        draw(told)


def test_overlay_darkens_what_is_less_and_colours_what_is_more():
    image = np.full((1, 3, 3), 0.5)
    less, even, more = overlay(image, np.array([[0.0, 1.0, 4.0]]), 4.0)[0]
    assert less == pytest.approx([0.175] * 3)
    assert even == pytest.approx([0.5] * 3)
    assert more[0] > 2 * more[2]
    assert more[0] > even[0]


def test_even_maps_are_one():
    torch.testing.assert_close(evenly(torch.full((2, 3, 4), 1 / 12)), torch.ones(2, 3, 4))
    assert not evenly(torch.zeros(2, 2)).any()


@pytest.mark.parametrize("carrier_size", [1, 2, 3])
@pytest.mark.parametrize("counts", [(1, 2), (2, 1), (2, 2), (3, 3), (2, 4), (1, 9), (7, 1), (8, 8)])
def test_shown_carriers_are_of_different_windows(carrier_size, counts):
    rows, columns = (carrier_size * count for count in counts)
    maps = torch.zeros(1, rows, columns, 4 * counts[0], 4 * counts[1])
    chosen = list(spread(CarrierAttention("", maps, maps[..., 0, 0], (4, 4), carrier_size, 16, (64, 64))))
    assert len(chosen) == min(4, counts[0] * counts[1])
    assert len({(row // carrier_size, column // carrier_size) for row, column in chosen}) == len(chosen)
    assert all(0 <= row < rows and 0 <= column < columns for row, column in chosen)


def test_what_does_not_belong_together_is_refused():
    model, x = tiny(**WINDOWED).eval(), images(128, 128)
    pixels = torch.zeros(3, 128, 128, dtype=torch.uint8)
    with pytest.raises(ValueError, match="give one image"):
        explain(model, x, pixels, CLASSES)
    with pytest.raises(ValueError, match="give one image"):
        explain(model, x[:1], pixels[:, :64], CLASSES)
    with pytest.raises(ValueError, match="3 names for 10 logits"):
        explain(model, x[:1], pixels, CLASSES[:3])
