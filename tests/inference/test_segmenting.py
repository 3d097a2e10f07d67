from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from openfastervit.inference.segmenting import segment, window_starts

K = 4


class Recorded(nn.Module):
    """A network that remembers the shapes of what it was given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        return self.network(images)


def pointwise() -> Recorded:
    """Each pixel by itself: windows change nothing. Small whole weights, so that sums are exact."""
    network = nn.Conv2d(3, K, 1).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape).double())
    return Recorded(network).eval()


class Contextual(nn.Module):
    """Each pixel by all that is in the window, and by its place in it: windows matter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, K, 3, padding=1).double()

    def forward(self, images: Tensor) -> Tensor:
        rows = torch.linspace(-1, 1, images.shape[2], dtype=images.dtype).view(1, 1, -1, 1)
        columns = torch.linspace(0, 3, images.shape[3], dtype=images.dtype).view(1, 1, 1, -1)
        return self.conv(images) + images.mean(dim=(1, 2, 3), keepdim=True) + rows * columns


def contextual() -> Recorded:
    return Recorded(Contextual()).eval()


def whole_numbers(height: int, width: int) -> Tensor:
    return torch.randint(-4, 5, (3, height, width)).double()


def by_hand(network: nn.Module, image: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Scores of windows, averaged, pixel by pixel: each pixel looks for the windows that it is in."""
    _, height, width = image.shape
    padded = torch.zeros(3, max(height, crop[0]), max(width, crop[1]), dtype=image.dtype)
    padded[:, :height, :width] = image

    def starts(length: int, side: int, step: int) -> list[int]:
        found = []
        start = 0
        while start + side < length:
            found.append(start)
            start += step
        return sorted({*found, length - side})

    windows = {
        (top, left): network(padded[None, :, top : top + crop[0], left : left + crop[1]])[0]
        for top in starts(padded.shape[1], crop[0], stride[0])
        for left in starts(padded.shape[2], crop[1], stride[1])
    }
    scores = torch.zeros(K, height, width, dtype=image.dtype)
    for row in range(height):
        for column in range(width):
            seen = [
                window[:, row - top, column - left]
                for (top, left), window in windows.items()
                if top <= row < top + crop[0] and left <= column < left + crop[1]
            ]
            assert seen
            scores[:, row, column] = torch.stack(seen).mean(0)
    return scores


SIDES = st.integers(1, 20)


@settings(max_examples=60)
@given(
    height=SIDES,
    width=SIDES,
    crop=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    parts=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
    batch_size=st.integers(1, 5),
)
def test_windows_equal_the_whole_where_pixels_stand_alone(
    height: int, width: int, crop: tuple[int, int], parts: tuple[float, float], batch_size: int
):
    network, image = pointwise(), whole_numbers(height, width)
    stride = (max(1, int(crop[0] * parts[0])), max(1, int(crop[1] * parts[1])))
    slid = segment(network, image, mode="slide", crop=crop, stride=stride, batch_size=batch_size)
    assert {shape[2:] for shape in network.shapes} == {crop}
    assert max(shape[0] for shape in network.shapes) <= batch_size
    torch.testing.assert_close(slid, segment(network, image), rtol=0, atol=1e-12)


def test_without_overlap_windows_equal_the_whole_to_the_last_bit():
    network, image = pointwise(), whole_numbers(12, 18)
    slid = segment(network, image, mode="slide", crop=(4, 6), stride=(4, 6))
    assert len(network.shapes) == 9
    assert torch.equal(slid, segment(network, image))


@settings(max_examples=25)
@given(
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    crop=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    parts=st.tuples(st.floats(0.2, 1), st.floats(0.2, 1)),
)
def test_overlapping_windows_are_averaged(height: int, width: int, crop: tuple[int, int], parts: tuple[float, float]):
    network, image = contextual(), torch.randn(3, height, width, dtype=torch.float64)
    stride = (max(1, int(crop[0] * parts[0])), max(1, int(crop[1] * parts[1])))
    with torch.no_grad():
        expected = by_hand(network, image, crop, stride).softmax(0)
    for batch_size in (1, 3):
        found = segment(network, image, mode="slide", crop=crop, stride=stride, batch_size=batch_size)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@given(length=st.integers(1, 300), crop=st.integers(1, 100), part=st.floats(0.01, 1))
def test_windows_cover_every_pixel_and_lie_inside(length: int, crop: int, part: float):
    stride = max(1, int(crop * part))
    starts = window_starts(length, crop, stride)
    assert starts == sorted(set(starts))
    covered = {place for start in starts for place in range(start, start + crop)}
    assert covered == set(range(max(length, crop)))
    # As many as mmsegmentation takes: one, and one for each stride that is begun beyond it.
    assert len(starts) == 1 + -(-max(0, length - crop) // stride)


def test_windows_overlap_by_a_third_where_nothing_else_is_said():
    network = pointwise()
    segment(network, whole_numbers(8, 12), mode="slide", crop=(6, 6))
    assert len(network.shapes) == len(window_starts(8, 6, 4)) * len(window_starts(12, 6, 4)) == 2 * 3


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_flip_adds_nothing_to_a_network_that_does_not_tell_sides(mode: str):
    network, image = pointwise(), whole_numbers(9, 13)
    options = {"mode": mode, "crop": (5, 5), "stride": (4, 3)}
    torch.testing.assert_close(
        segment(network, image, flip=True, **options), segment(network, image, **options), rtol=0, atol=1e-12
    )


@settings(max_examples=10)
@given(scales=st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.75]), min_size=1, max_size=3), flip=st.booleans())
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_scales_and_mirror_images_are_averaged(mode: str, scales: list[float], flip: bool):
    network, image = contextual(), torch.randn(3, 12, 16, dtype=torch.float64)
    crop, stride = (7, 6), (4, 6)
    parts = []
    for scale in scales:
        size = (round(12 * scale), round(16 * scale))
        scaled = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        for mirrored in (False, True)[: 1 + flip]:
            seen = torch.from_numpy(scaled.numpy()[:, :, ::-1].copy()) if mirrored else scaled
            with torch.no_grad():
                scores = network(seen[None])[0] if mode == "whole" else by_hand(network, seen, crop, stride)
            if mirrored:
                scores = torch.from_numpy(scores.numpy()[:, :, ::-1].copy())
            parts.append(F.interpolate(scores[None], (12, 16), mode="bilinear")[0].softmax(0))
    found = segment(network, image, mode=mode, crop=crop, stride=stride, scales=scales, flip=flip)
    torch.testing.assert_close(found, torch.stack(parts).mean(0), rtol=1e-9, atol=1e-9)


def test_mirror_images_make_the_prediction_symmetric():
    network, image = contextual(), torch.randn(3, 10, 14, dtype=torch.float64)
    options = {"scales": (0.5, 1.0), "flip": True}
    found, mirrored = segment(network, image, **options), segment(network, image.flip(-1), **options)
    torch.testing.assert_close(found, mirrored.flip(-1), rtol=1e-9, atol=1e-9)
    plain = segment(network, image)
    assert not torch.allclose(plain, segment(network, image.flip(-1)).flip(-1), atol=1e-3)  # it does tell sides


def test_scales_change_what_the_network_sees_and_not_the_size_of_the_result():
    network = pointwise()
    found = segment(network, whole_numbers(10, 20), scales=(0.5, 1.0, 1.5), flip=True)
    assert network.shapes == [(1, 3, *size) for size in ((5, 10), (5, 10), (10, 20), (10, 20), (15, 30), (15, 30))]
    assert found.shape == (K, 10, 20)


@pytest.mark.parametrize("size", [(20, 26), (5, 40)])
def test_scores_are_scaled_to_the_size_that_is_asked_for(size: tuple[int, int]):
    network, image = pointwise(), whole_numbers(10, 13)
    with torch.no_grad():
        expected = F.interpolate(network(image[None]), size, mode="bilinear").softmax(1)[0]
    torch.testing.assert_close(segment(network, image, size=size), expected)
    torch.testing.assert_close(segment(network, image, size=size, mode="slide", crop=(10, 13)), expected)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 2.0)])
def test_probabilities_sum_to_one_in_single_precision_and_take_no_gradients(scales: Sequence[float]):
    network = nn.Conv2d(3, K, 3, padding=1).eval()
    found = segment(network, torch.randn(3, 9, 9), scales=scales, mode="slide", crop=(4, 4), flip=True)
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(found.sum(0), torch.ones(9, 9))


def test_scores_of_half_precision_are_averaged_in_single():
    network = nn.Conv2d(3, K, 1).eval()
    image = torch.randn(3, 8, 8)

    def half(images: Tensor) -> Tensor:
        return network(images).bfloat16()

    with torch.no_grad():
        expected = half(image[None])[0].float().softmax(0)
    torch.testing.assert_close(segment(half, image), expected)
    assert segment(half, image, mode="slide", crop=(4, 4)).dtype == torch.float32


def test_what_does_not_fit_is_named():
    network, image = pointwise(), whole_numbers(8, 8)
    for told, options in (
        ("mode='window' must be", {"mode": "window"}),
        ("crop is not given", {"mode": "slide"}),
        (r"crop=\(0, 4\) must be", {"mode": "slide", "crop": (0, 4)}),
        (r"stride=\(5, 4\) must be .* at most crop=\(4, 4\)", {"mode": "slide", "crop": (4, 4), "stride": (5, 4)}),
        (r"stride=\(0, 4\)", {"mode": "slide", "crop": (4, 4), "stride": (0, 4)}),
        (r"scales=\(\)", {"scales": ()}),
        (r"scales=\(1.0, -1\)", {"scales": (1.0, -1)}),
        ("batch_size=0", {"batch_size": 0}),
    ):
        with pytest.raises(ValueError, match=told):
            segment(network, image, **options)
    with pytest.raises(ValueError, match=r"image of shape \[1, 3, 8, 8\]"):
        segment(network, image[None])
    with pytest.raises(ValueError, match=r"type torch.uint8 is not \(3, H, W\), normalised"):
        segment(network, image.byte())
    with pytest.raises(ValueError, match="training mode"):
        segment(network.train(), image)
    with pytest.raises(ValueError, match=r"scores of shape \[1, 4, 7, 7\] do not fit images of \[1, 3, 8, 8\]"):
        segment(nn.Conv2d(3, K, 2).double().eval(), image)
