import itertools

import pytest
import torch
from torch import Tensor, nn

from openfastervit.inference.explain import WindowAttention, window_attention
from openfastervit.layers import AttentionBlock, grid_geometry
from openfastervit.layers.windows import pad_to_windows
from tests.inference.explain.models import WINDOWED, hooks, stage_of
from tests.networks import images, tiny

SIZES = [(128, 128), (64, 160), (150, 100)]


def softmaxed(block: AttentionBlock, tokens: Tensor, geometry, carriers: int) -> Tensor:
    """``(heads, T, T)``: attention among the tokens ``(T, C)`` of one window, a head at a time."""
    attn = block.window.attn
    assert block.window.bias is not None
    q, k, _ = attn.qkv(block.window.norm1(tokens)).chunk(3, dim=-1)
    bias = block.window.bias(geometry, carriers)
    width = q.shape[-1] // attn.num_heads
    return torch.stack(
        [
            (q[:, i * width :][:, :width] @ k[:, i * width :][:, :width].T / width**0.5 + bias[i]).softmax(dim=-1)
            for i in range(attn.num_heads)
        ]
    )


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_attention_window_by_window(size):
    """Stage 3, which has no carriers: each window cut out by hand."""
    model = tiny(**WINDOWED).eval()
    x = images(*size)
    *_, shown = window_attention(model, x)
    assert shown.name == "stages.3.attention.blocks.0"
    assert (shown.carriers, shown.stride, shown.image_size) == (0, 32, size)
    stage = model.stages[3]
    tokens = stage.downsample(model.stages[:3](model.stem(x)))
    height, width = tokens.shape[2:]
    assert shown.size == (height, width)
    (block,) = stage.attention.blocks
    geometry = grid_geometry(4, 4, torch.float32, x.device)
    counts = -(-height // 4), -(-width // 4)
    padded = pad_to_windows(tokens, (4, 4), counts)
    received = torch.zeros(2, height, width)
    for image, i, j in itertools.product(range(2), range(counts[0]), range(counts[1])):
        cut = padded[image, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten(1).T
        embedded = block.window_position(cut[None], geometry)[0]
        paid = softmaxed(block, embedded, geometry, 0).mean(dim=0)
        cells = [(4 * i + k // 4, 4 * j + k % 4) for k in range(16)]
        real = [k for k, (y, x_) in enumerate(cells) if y < height and x_ < width]
        for query in real:
            whole = torch.zeros(height, width)
            for key in real:
                whole[cells[key]] = paid[query, key]
                received[(image, *cells[key])] += paid[query, key] / len(real)
            torch.testing.assert_close(shown.from_cell(*cells[query])[image], whole)
            lost = 1 - whole.sum()
            torch.testing.assert_close(shown.to_padding()[image][cells[query]], lost, atol=1e-5, rtol=0)
    torch.testing.assert_close(shown.received(), received)


@pytest.mark.parametrize("options", [{}, {"carrier_levels": 2}, {"mask_padding": True}, {"attention": "window"}])
@pytest.mark.parametrize("size", SIZES)
def test_every_cell_gives_all_its_attention_away(size, options):
    model = tiny(**WINDOWED, **options).eval()
    found = window_attention(model, images(*size))
    names = [*(f"stages.2.attention.blocks.{i}" for i in range(3)), "stages.3.attention.blocks.0"]
    assert [block.name for block in found] == names
    for block in found:
        height, width = block.size
        assert block.carriers == (4 if "stages.2" in block.name and "attention" not in options else 0)
        to_carriers, to_padding = block.to_carriers(), block.to_padding()
        assert bool((to_padding > 1e-4).any()) == (bool(height % 4 or width % 4) and "mask_padding" not in options)
        given = torch.stack(
            [block.from_cell(y, x).sum(dim=(1, 2)) for y, x in itertools.product(range(height), range(width))], dim=1
        ).view(2, height, width)
        torch.testing.assert_close(given + to_carriers + to_padding, torch.ones(2, height, width))
        received, relative = block.received(), block.relative()
        for top, left in itertools.product(range(0, height, 4), range(0, width, 4)):
            window = slice(None), slice(top, top + 4), slice(left, left + 4)
            kept = 1 - (to_carriers + to_padding)[window].mean(dim=(1, 2))
            torch.testing.assert_close(received[window].sum(dim=(1, 2)), kept)
            torch.testing.assert_close(relative[window].mean(dim=(1, 2)), torch.ones(2))
            mean = received[window].mean(dim=(1, 2), keepdim=True)
            torch.testing.assert_close(relative[window] * mean, received[window])
        assert block.over_image(received).shape == (2, *size)


def test_a_cell_sees_its_window_alone():
    block = window_attention(tiny(**WINDOWED).eval(), images(128, 192))[0]
    seen = block.from_cell(5, 9)
    inside = torch.zeros(8, 12, dtype=torch.bool)
    inside[4:8, 8:12] = True
    assert (seen[:, inside] > 0).all()
    assert (seen[:, ~inside] == 0).all()


@pytest.mark.parametrize("cell", [(8, 0), (0, 12), (-1, 0)])
def test_a_cell_that_is_not_there_is_refused(cell):
    block = window_attention(tiny(**WINDOWED).eval(), images(128, 192))[0]
    with pytest.raises(ValueError, match=f"row={cell[0]}, column={cell[1]} is no cell of a map of 8 x 12"):
        block.from_cell(*cell)


def test_even_attention_is_one_everywhere():
    weights = torch.full((1, 2, 1, 4, 5), 1 / 5)
    block = WindowAttention("", weights, (2, 2), (3, 2), 16, (48, 32))
    torch.testing.assert_close(block.relative(), torch.ones(1, 3, 2))
    torch.testing.assert_close(block.received(), torch.full((1, 3, 2), 1 / 5))
    torch.testing.assert_close(block.to_carriers(), torch.full((1, 3, 2), 1 / 5))
    torch.testing.assert_close(block.to_padding()[0, 2], torch.full((2,), 2 / 5))


def test_the_model_is_left_as_it_was():
    model = tiny(**WINDOWED).eval()
    x = images(128, 128)
    before = model(x)
    window_attention(model, x)
    assert not hooks(model)
    assert torch.equal(model(x), before)
    handle = stage_of(model).blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        window_attention(model, x)
    handle.remove()
    assert not hooks(model)


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(ValueError, match="attention"):
        window_attention(tiny(**WINDOWED, attention=("twins", "global")).eval(), images(128, 128))
    with pytest.raises(ValueError, match="training mode"):
        window_attention(tiny(**WINDOWED).train(), images(128, 128))
    with pytest.raises(TypeError, match="Linear"):
        window_attention(nn.Linear(2, 2), Tensor())
