import itertools

import pytest
import torch
from torch import Tensor, nn

from openfastervit import FasterViT
from openfastervit.inference.explain import CarrierAttention, carrier_attention, pooling_footprint
from openfastervit.layers import CarrierInitialiser, grid_geometry
from openfastervit.layers.windows import carriers_to_grid, carriers_to_windows, map_to_windows, window_counts
from tests.inference.explain.models import WINDOWED, blocks_of, hooks, stage_of
from tests.networks import images, tiny


@torch.no_grad()
def flat_attention(model: FasterViT, carrier_bias: tuple[float, float] = (0.0, 0.0)) -> None:
    """Make all logits equal but for the bias between carriers, ``16 * sigmoid(base + slope * |offset|)``."""
    base, slope = carrier_bias
    for block in blocks_of(model):
        assert block.carrier is not None
        for layer in (block.window, block.carrier):
            layer.attn.qkv.weight.zero_()
            layer.attn.qkv.bias.zero_()
            layer.bias.mlp.fc1.weight.zero_()
            layer.bias.mlp.fc1.bias.zero_()
            layer.bias.mlp.fc2.weight.zero_()
        mlp = block.carrier.bias.mlp
        for unit, row, column in ((0, 1.0, 0.0), (1, -1.0, 0.0), (2, 0.0, 1.0), (3, 0.0, -1.0)):
            mlp.fc1.weight[unit] = torch.tensor([row, column])  # relu(t), relu(-t) of each axis: |t|
            mlp.fc2.weight[:, unit] = slope
        mlp.fc1.bias[4] = 1.0
        mlp.fc2.weight[:, 4] = base


@pytest.mark.parametrize("size", [(128, 128), (64, 160), (150, 100), (256, 96)])
@pytest.mark.parametrize("carrier_size", [1, 2])
def test_every_carrier_has_a_distribution_over_the_map(size, carrier_size):
    model = tiny(**WINDOWED, carrier_size=carrier_size).eval()
    found = carrier_attention(model, images(*size))
    assert [block.name for block in found] == [f"stages.2.attention.blocks.{i}" for i in range(3)]
    height, width = -(-size[0] // 16), -(-size[1] // 16)
    counts = window_counts(height, width, (4, 4))
    for block in found:
        assert model.get_submodule(block.name) in blocks_of(model)
        assert block.maps.shape == (2, carrier_size * counts[0], carrier_size * counts[1], height, width)
        assert block.maps.min() >= 0
        torch.testing.assert_close(block.maps.sum(dim=(3, 4)), torch.ones(block.maps.shape[:3]))
        assert block.padding.shape == block.maps.shape[:3]
        assert bool((block.padding > 1e-3).all()) == bool(height % 4 or width % 4)
        assert block.over_image().shape == (*block.maps.shape[:3], *size)
        assert (block.window, block.carrier_size, block.stride, block.image_size) == ((4, 4), carrier_size, 16, size)


def test_images_of_a_batch_do_not_mix():
    model = tiny(**WINDOWED).eval()
    both = images(128, 96)
    for together, alone in zip(carrier_attention(model, both), carrier_attention(model, both[1:]), strict=True):
        torch.testing.assert_close(together.maps[1:], alone.maps)


def test_the_model_is_left_as_it_was():
    model = tiny(**WINDOWED).eval()
    x = images(128, 128)
    before, state = model(x), {name: value.clone() for name, value in model.state_dict().items()}
    carrier_attention(model, x)
    assert not hooks(model)
    assert torch.equal(model(x), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_hooks_are_gone_after_an_error():
    model = tiny(**WINDOWED).eval()

    def fail(*_: object) -> None:
        raise RuntimeError("stop here")

    handle = stage_of(model).blocks[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop here"):
        carrier_attention(model, images(128, 128))
    handle.remove()
    assert not hooks(model)


def test_flat_attention_counts_cells():
    """Every carrier hears all carriers alike: of their pooling first, of all windows' tokens later."""
    model = tiny(**WINDOWED).eval()
    flat_attention(model)
    # A map of 8 x 12: the pooling is that of 4 x 6 cells of 2 x 2, which do not overlap.
    for block in carrier_attention(model, images(128, 192)):
        torch.testing.assert_close(block.maps, torch.full((2, 4, 6, 8, 12), 1 / 96))
        torch.testing.assert_close(block.elsewhere(), torch.full((2, 4, 6), 5 / 6))
    # A map of 5 x 4, padded to 8 x 4: the last carriers were pooled from padding, and so were parts of the last tokens.
    first, *later = carrier_attention(model, images(80, 64))
    for block in (first, *later):
        torch.testing.assert_close(block.maps, torch.full((2, 4, 2, 5, 4), 1 / 20))
        torch.testing.assert_close(block.padding, torch.full((2, 4, 2), 3 / 8))


def test_flat_attention_counts_overlapping_pooling():
    """Window 7, carriers 2 x 2, 14 cells: pooling with stride 3 and kernel 5 counts some cells twice."""
    model = tiny(depths=(1, 1, 2, 1)).eval()
    flat_attention(model)
    first, second = carrier_attention(model, images(224, 224))
    often = torch.tensor([1, 1, 1, 2, 2, 1, 2, 2, 1, 2, 2, 1, 1, 1]) / 20
    torch.testing.assert_close(first.maps[0, 0, 0], torch.outer(often, often))
    torch.testing.assert_close(second.maps[0, 0, 0], torch.full((14, 14), 1 / 196))


def test_carriers_that_hear_only_themselves_see_what_they_read():
    model = tiny(**WINDOWED).eval()
    flat_attention(model, carrier_bias=(40.0, -1000.0))  # bias 16 on itself, 0 on all others
    first, *later = carrier_attention(model, images(128, 192))
    for row, column in itertools.product(range(4), range(6)):
        pooled = torch.zeros(8, 12)
        pooled[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 1 / 4
        torch.testing.assert_close(first.maps[0, row, column], pooled, atol=1e-5, rtol=0)
        window = torch.zeros(8, 12)
        window[row // 2 * 4 : row // 2 * 4 + 4, column // 2 * 4 : column // 2 * 4 + 4] = 1 / 16
        for block in later:
            torch.testing.assert_close(block.maps[0, row, column], window, atol=1e-5, rtol=0)
    assert later[0].elsewhere().max() < 1e-4


@torch.no_grad()
def test_agrees_with_counting_carrier_by_carrier():
    model = tiny(**WINDOWED).eval()
    x = images(128, 192, batch=1)
    found = carrier_attention(model, x)
    stage, counts, c = stage_of(model), (2, 3), 2
    tokens = model.stages[2].downsample(model.stages[:2](model.stem(x)))
    window_geometry, carrier_geometry = (grid_geometry(*size, torch.float32, x.device) for size in ((4, 4), (4, 6)))
    assert stage.carrier_init is not None
    carriers = stage.carrier_init(tokens, (4, 4), counts)
    windows = map_to_windows(tokens, (4, 4), counts)
    read = pooling_footprint((8, 12), (4, 6)).flatten(0, 1)  # of each carrier: what it knows of the map
    for block, shown in zip(blocks_of(model), found, strict=True):
        assert block.carrier is not None
        assert block.carrier_position is not None
        windows = block.window_position(windows, window_geometry)
        carriers = block.carrier_position(carriers, carrier_geometry)
        layer = block.carrier
        heard = layer.attn.weights(layer.norm1(carriers), layer.bias(carrier_geometry, 0))[0].mean(dim=0)
        expected = torch.zeros(24, 8, 12)
        for q, k in itertools.product(range(24), range(24)):
            expected[q] += heard[q, k] * read[k]
        torch.testing.assert_close(shown.maps[0].flatten(0, 1), expected)
        carriers = layer(carriers, carrier_geometry, 0)
        both = torch.cat((carriers_to_windows(carriers, c, counts), windows), dim=1)
        paid = block.window.attn.weights(block.window.norm1(both), block.window.bias(window_geometry, 4)).mean(dim=1)
        read = torch.zeros(24, 8, 12)
        for row, column in itertools.product(range(4), range(6)):
            window = row // 2 * 3 + column // 2
            own = paid[window, row % 2 * 2 + column % 2, 4:]
            top, left = row // 2 * 4, column // 2 * 4
            read[row * 6 + column, top : top + 4, left : left + 4] = (own / own.sum()).view(4, 4)
        both = block.window(both, window_geometry, 4)
        carriers, windows = carriers_to_grid(both[:, :4], c, counts), both[:, 4:]


@pytest.mark.parametrize("pooling", ["released", "aligned"])
@pytest.mark.parametrize("window", [(4, 6), (7, 7), (5, 3)])
def test_footprint_is_that_of_the_pooling(window, pooling):
    initialiser = CarrierInitialiser(1, carrier_size=2, pooling=pooling)
    with torch.no_grad():
        initialiser.conv.weight.zero_()[:, :, 1, 1] = 1
        initialiser.conv.bias.zero_()
        size = 2 * window[0], 3 * window[1]
        cells = torch.eye(size[0] * size[1]).view(-1, 1, *size)
        pooled = initialiser(cells, window, (2, 3))[:, :, 0].T.reshape(4, 6, *size)
    torch.testing.assert_close(pooling_footprint(size, (4, 6), pooling), pooled)


@pytest.mark.parametrize("options", [{}, {"carrier_levels": 2}, {"mask_padding": True}])
@pytest.mark.parametrize("size", [(128, 192), (150, 100), (80, 64)])
def test_windows_feed_a_carrier_what_their_cells_do(size, options):
    for block in carrier_attention(tiny(**WINDOWED, **options).eval(), images(*size)):
        shares, elsewhere = block.windows(), block.elsewhere()
        batch, rows, columns, height, width = block.maps.shape
        assert shares.shape == (batch, rows, columns, -(-height // 4), -(-width // 4))
        torch.testing.assert_close(shares.sum(dim=(3, 4)), torch.ones(batch, rows, columns))
        for row, column in itertools.product(range(shares.shape[3]), range(shares.shape[4])):
            expected = sum(
                block.maps[..., y, x]
                for y, x in itertools.product(range(height), range(width))
                if (y // 4, x // 4) == (row, column)
            )
            torch.testing.assert_close(shares[..., row, column], expected)
        for row, column in itertools.product(range(rows), range(columns)):
            own = shares[:, row, column, row // 2, column // 2]
            torch.testing.assert_close(elsewhere[:, row, column], 1 - own)


def test_masked_padding_gets_no_attention():
    x = images(80, 100)
    for block in carrier_attention(tiny(**WINDOWED, carrier_size=1, mask_padding=True).eval(), x):
        torch.testing.assert_close(block.padding, torch.zeros_like(block.padding), atol=1e-6, rtol=0)
    # Carriers that were pooled from padding alone know nothing at first; from the first block on all read real cells.
    first, *later = carrier_attention(tiny(**WINDOWED, mask_padding=True).eval(), x)
    assert (first.padding > 1e-3).all()
    for block in later:
        torch.testing.assert_close(block.padding, torch.zeros_like(block.padding), atol=1e-6, rtol=0)
    for block in (first, *later):
        torch.testing.assert_close(block.maps.sum(dim=(3, 4)), torch.ones(block.maps.shape[:3]))


def test_aligned_carriers_know_their_own_part_of_their_window():
    """Each hears only itself: then the first block shows what it was pooled from."""
    model = tiny(img_size=192, window_sizes=(7, 7, 6, 6), carrier_size=4, carrier_pooling="aligned").eval()
    flat_attention(model, carrier_bias=(40.0, -1000.0))
    first, _ = carrier_attention(model, images(192, 192))
    for row, column in itertools.product(range(8), range(8)):
        part = torch.zeros(12, 12)
        for y, x in itertools.product(range(12), range(12)):
            belongs = (y // 6 * 4 + y % 6 * 4 // 6, x // 6 * 4 + x % 6 * 4 // 6)
            part[y, x] = belongs == (row, column)
        torch.testing.assert_close(first.maps[0, row, column], part / part.sum(), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("size", [(160, 224), (70, 200)])
def test_two_levels_agree_with_following_every_carrier(size, mask_padding):
    """Windows of 4 carriers at most; grids of 6 x 8 and of 4 x 8 carriers, the first cut into windows of 3 x 4."""
    model = tiny(**WINDOWED, carrier_levels=2, mask_padding=mask_padding).eval()
    seen: list[Tensor] = []
    handles = [
        layer.attn.register_forward_pre_hook(lambda attn, inputs: seen.append(attn.weights(*inputs)[0:].mean(dim=1)))
        for block in blocks_of(model)
        for layer in (block.super_carrier, block.carrier, block.window)
    ]
    x = images(*size, batch=1)
    model(x)
    for handle in handles:
        handle.remove()
    found = carrier_attention(model, x)
    height, width = (-(-side // 16) for side in size)
    n_h, n_w = -(-height // 4), -(-width // 4)
    rows, columns = 2 * n_h, 2 * n_w
    m_h, m_w = -(-rows // 4), -(-columns // 4)
    h, w = -(-rows // m_h), -(-columns // m_w)

    def inside(y: int, x: int) -> bool:
        return y < height and x < width

    def normal(cells: dict) -> dict:
        total = sum(cells.values())
        return {cell: share / total for cell, share in cells.items()} if total else {}

    def mix(*parts: tuple[float, dict]) -> dict:
        mixed: dict = {}
        for share, cells in parts:
            for cell, value in cells.items():
                mixed[cell] = mixed.get(cell, 0.0) + share * value
        return mixed

    carriers = list(itertools.product(range(rows), range(columns)))
    supers = list(itertools.product(range(2 * m_h), range(2 * m_w)))
    footprint = pooling_footprint((4 * n_h, 4 * n_w), (rows, columns))
    knows = {}
    for r, c in carriers:
        cells = {(int(y), int(x)): float(footprint[r, c, y, x]) for y, x in footprint[r, c].nonzero()}
        knows[r, c] = normal({cell: v for cell, v in cells.items() if inside(*cell)}) if mask_padding else cells
    # What each carrier of carriers was pooled from: its own part of its window.
    told = {}
    for s in supers:
        part = [(r, c) for r, c in carriers if (r // h * 2 + r % h * 2 // h, c // w * 2 + c % w * 2 // w) == s]
        told[s] = mix(*((1 / len(part), knows[k]) for k in part))
    for number, shown in enumerate(found):
        among_supers, among_carriers, in_windows = seen[3 * number : 3 * number + 3]
        heard = {
            s: mix(*((float(among_supers[0, i, j]), told[t]) for j, t in enumerate(supers)))
            for i, s in enumerate(supers)
        }
        after: dict = {}
        reading: dict = {}
        for i, j in itertools.product(range(m_h), range(m_w)):
            paid = among_carriers[i * m_w + j]
            own = [(2 * i + a, 2 * j + b) for a in range(2) for b in range(2)]
            tokens = [(i * h + a, j * w + b) for a in range(h) for b in range(w)]
            for query, (r, c) in enumerate(tokens):
                if (r, c) in knows:
                    row = paid[4 + query]
                    after[r, c] = mix(
                        *((float(row[k]), heard[s]) for k, s in enumerate(own)),
                        *((float(row[4 + k]), knows[t]) for k, t in enumerate(tokens) if t in knows),
                    )
            for query, s in enumerate(own):
                shares = normal({t: float(paid[query, 4 + k]) for k, t in enumerate(tokens) if t in knows})
                reading[s] = mix(*((share, knows[t]) for t, share in shares.items()))
        expected = torch.zeros(rows, columns, height, width)
        for (r, c), cells in after.items():
            for (y, x_), share in cells.items():
                if inside(y, x_):
                    expected[r, c, y, x_] = share
        padding = 1 - expected.sum(dim=(2, 3))
        torch.testing.assert_close(shown.padding[0], padding.clamp(0, 1), atol=1e-5, rtol=0)
        torch.testing.assert_close(shown.maps[0], expected / (1 - padding)[..., None, None], atol=1e-5, rtol=0)
        told = reading
        for r, c in carriers:
            row = in_windows[r // 2 * n_w + c // 2, r % 2 * 2 + c % 2, 4:]
            cells = {(r // 2 * 4 + k // 4, c // 2 * 4 + k % 4): float(v) for k, v in enumerate(row / row.sum())}
            knows[r, c] = cells


def test_two_levels_on_a_small_grid_are_one():
    x = images(128, 96)
    two = carrier_attention(tiny(**WINDOWED, carrier_levels=2).eval(), x)
    model = tiny(**WINDOWED).eval()
    model.load_state_dict(
        {name: value for name, value in tiny(**WINDOWED, carrier_levels=2).state_dict().items() if "super" not in name}
    )
    for a, b in zip(two, carrier_attention(model, x), strict=True):
        torch.testing.assert_close(a.maps, b.maps)


def test_over_image_shows_each_cell_where_it_is():
    maps = torch.zeros(1, 1, 1, 3, 2)
    maps[..., 2, 1] = 1
    shown = CarrierAttention("", maps, torch.zeros(1, 1, 1), (2, 2), 1, 16, (40, 20))
    expected = torch.zeros(40, 20)
    expected[32:, 16:] = 1
    assert torch.equal(shown.over_image()[0, 0, 0], expected)
    assert shown.over_image("bilinear").shape == (1, 1, 1, 40, 20)


def test_float64_and_bfloat16():
    exact = carrier_attention(tiny(**WINDOWED).eval(), images(128, 128))
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.05)):
        model, x = tiny(**WINDOWED).eval().to(dtype), images(128, 128, dtype=dtype)
        for a, b in zip(carrier_attention(model, x), exact, strict=True):
            assert a.maps.dtype == torch.float32
            torch.testing.assert_close(a.maps, b.maps, atol=tolerance, rtol=0)


def test_what_cannot_be_shown_is_refused():
    model = tiny(**WINDOWED).eval()
    with pytest.raises(ValueError, match="no carrier tokens on images of 64 x 64"):
        carrier_attention(model, images(64, 64))
    with pytest.raises(ValueError, match="no carrier tokens"):
        carrier_attention(tiny(**WINDOWED, hierarchical=(False,) * 4).eval(), images(128, 128))
    with pytest.raises(ValueError, match="carrier_attention"):
        carrier_attention(tiny(**WINDOWED, without=("carrier_attention",)).eval(), images(128, 128))
    with pytest.raises(ValueError, match="no carrier tokens"):
        carrier_attention(tiny(**WINDOWED, attention="twins").eval(), images(128, 128))
    with pytest.raises(ValueError, match="training mode"):
        carrier_attention(model.train(), images(128, 128))
    with pytest.raises(TypeError, match="Linear"):
        carrier_attention(nn.Linear(2, 2), Tensor())
