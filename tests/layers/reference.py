"""Hierarchical attention written a second time, from the definition, one window and one head at a time.

Slow and plain on purpose: loops and softmax, no reshaping tricks, so that a mistake in the fast one shows. Square maps
have the released networks to be compared with; maps of any other shape have this.
"""

import math

import torch
from torch import Tensor

from openfastervit.layers import AttentionBlock, HierarchicalAttention, TransformerLayer
from openfastervit.layers.position import PositionMLP


def _mlp(mlp: PositionMLP, point: tuple[float, float], like: Tensor) -> Tensor:
    x = torch.tensor(point, dtype=like.dtype)
    return mlp.fc2.weight @ torch.relu(mlp.fc1.weight @ x + mlp.fc1.bias)


def _absolute(mlp: PositionMLP, height: int, width: int, like: Tensor) -> Tensor:
    def coordinate(i: int, size: int) -> float:
        return 0.0 if size == 1 else (i - size // 2) / (size // 2)

    rows = [_mlp(mlp, (coordinate(i, height), coordinate(j, width)), like) for i in range(height) for j in range(width)]
    return torch.stack(rows)


def _offset(d: int, size: int) -> float:
    if size == 1:
        return 0.0
    u = 8 * d / (size - 1)
    return math.copysign(math.log2(abs(u) + 1) / math.log2(8), u)


def _bias(mlp: PositionMLP, height: int, width: int, carriers: int, heads: int, like: Tensor) -> Tensor:
    tokens = [(i, j) for i in range(height) for j in range(width)]
    bias = torch.zeros(heads, carriers + len(tokens), carriers + len(tokens), dtype=like.dtype)
    cache: dict[tuple[int, int], Tensor] = {}
    for q, (qi, qj) in enumerate(tokens):
        for k, (ki, kj) in enumerate(tokens):
            d = (qi - ki, qj - kj)
            if d not in cache:
                cache[d] = 16 * torch.sigmoid(_mlp(mlp, (_offset(d[0], height), _offset(d[1], width)), like))
            bias[:, carriers + q, carriers + k] = cache[d]
    return bias


def _layer(layer: TransformerLayer, x: Tensor, bias: Tensor) -> Tensor:
    """``(N, C) -> (N, C)``."""
    attn = layer.attn
    heads, width = attn.num_heads, x.shape[1] // attn.num_heads
    qkv = layer.norm1(x) @ attn.qkv.weight.T + attn.qkv.bias
    out = []
    for h in range(heads):
        q, k, v = (qkv[:, (part * heads + h) * width : (part * heads + h + 1) * width] for part in range(3))
        out.append(torch.softmax(q @ k.T / math.sqrt(width) + bias[h], dim=-1) @ v)
    x = x + layer.scale1(torch.cat(out, dim=1) @ attn.proj.weight.T + attn.proj.bias)
    return x + layer.scale2(layer.mlp(layer.norm2(x)))


def _among_carriers(block: AttentionBlock, carriers: Tensor) -> Tensor:
    """All carriers ``(G_h, G_w, C)`` attend to one another."""
    assert isinstance(block.carrier, TransformerLayer)
    assert block.carrier_position is not None
    assert block.carrier.bias is not None
    height, width, channels = carriers.shape
    flat = carriers.reshape(-1, channels) + _absolute(block.carrier_position.mlp, height, width, carriers)
    heads = block.carrier.attn.num_heads
    bias = _bias(block.carrier.bias.mlp, height, width, 0, heads, carriers)
    return _layer(block.carrier, flat, bias).reshape(height, width, channels)


def _in_windows_of_carriers(
    block: AttentionBlock, carriers: Tensor, supers: Tensor, side: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Carriers ``(G_h, G_w, C)`` attend in windows of ``side``, with carriers ``(S_h, S_w, C)`` of their own."""
    assert isinstance(block.carrier, TransformerLayer)
    assert block.super_carrier is not None
    assert block.carrier_position is not None
    assert block.super_position is not None
    assert block.carrier.bias is not None
    assert block.super_carrier.bias is not None
    c, heads, channels = block.carrier_size, block.carrier.attn.num_heads, carriers.shape[2]
    rows, columns = supers.shape[0], supers.shape[1]
    flat = supers.reshape(-1, channels) + _absolute(block.super_position.mlp, rows, columns, supers)
    bias = _bias(block.super_carrier.bias.mlp, rows, columns, 0, heads, supers)
    supers = _layer(block.super_carrier, flat, bias).reshape(rows, columns, channels)
    position = _absolute(block.carrier_position.mlp, *side, carriers)
    bias = _bias(block.carrier.bias.mlp, *side, c * c, heads, carriers)
    new_carriers, new_supers = torch.zeros_like(carriers), torch.zeros_like(supers)
    for a in range(rows // c):
        for b in range(columns // c):
            places = [(a * side[0] + i, b * side[1] + j) for i in range(side[0]) for j in range(side[1])]
            there = [k for k, (i, j) in enumerate(places) if i < carriers.shape[0] and j < carriers.shape[1]]
            own = torch.stack([carriers[places[k]] + position[k] for k in there])
            local = supers[a * c : (a + 1) * c, b * c : (b + 1) * c].reshape(-1, channels)
            seen = [*range(c * c), *(c * c + k for k in there)]
            heard = _layer(block.carrier, torch.cat((local, own)), bias[:, seen][:, :, seen])
            new_supers[a * c : (a + 1) * c, b * c : (b + 1) * c] = heard[: c * c].reshape(c, c, channels)
            for k, token in zip(there, heard[c * c :], strict=True):
                new_carriers[places[k]] = token
    return new_carriers, new_supers


def _block(
    block: AttentionBlock, grid: Tensor, carriers: Tensor | None, window: tuple[int, int], real: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """``grid`` (n_h*h, n_w*w, C), ``carriers`` (c*n_h, c*n_w, C), which have attended to one another already.

    What is past ``real`` is as if it were not there.
    """
    h, w = window
    n_h, n_w, channels = grid.shape[0] // h, grid.shape[1] // w, grid.shape[2]
    c, heads = block.carrier_size, block.window.attn.num_heads
    position = _absolute(block.window_position.mlp, h, w, grid)
    num_carriers = 0
    if carriers is not None:
        num_carriers = c * c
    bias = _bias(block.window.bias.mlp, h, w, num_carriers, heads, grid)
    new_grid = torch.zeros_like(grid)
    new_carriers = torch.zeros_like(carriers) if carriers is not None else None
    for a in range(n_h):
        for b in range(n_w):
            places = [(a * h + i, b * w + j) for i in range(h) for j in range(w)]
            there = [k for k, (i, j) in enumerate(places) if i < real[0] and j < real[1]]
            tokens = (grid[a * h : (a + 1) * h, b * w : (b + 1) * w].reshape(-1, channels) + position)[there]
            if carriers is not None:
                local = carriers[a * c : (a + 1) * c, b * c : (b + 1) * c].reshape(-1, channels)
                tokens = torch.cat((local, tokens))
            seen = [*range(num_carriers), *(num_carriers + k for k in there)]
            tokens = _layer(block.window, tokens, bias[:, seen][:, :, seen])
            local = tokens[:num_carriers]
            tokens = torch.zeros(h * w, channels, dtype=grid.dtype).index_copy(
                0, torch.tensor(there), tokens[num_carriers:]
            )
            if new_carriers is not None:
                new_carriers[a * c : (a + 1) * c, b * c : (b + 1) * c] = local.reshape(c, c, channels)
            tokens = tokens.reshape(h, w, channels)
            if new_carriers is not None and block.propagate_carriers:
                assert block.carrier is not None
                for i in range(h):
                    for j in range(w):
                        source = local.reshape(c, c, channels)[i * c // h, j * c // w]
                        tokens[i, j] = tokens[i, j] + block.carrier.scale1(source)
            new_grid[a * h : (a + 1) * h, b * w : (b + 1) * w] = tokens
    return new_grid, new_carriers


def _cells(side: int, count: int, c: int, pooling: str) -> list[list[int]]:
    """Along an axis of ``count`` windows the positions that each carrier averages."""
    if pooling == "released":
        stride = side * count // (c * count)
        kernel = side * count - (c * count - 1) * stride
        return [list(range(i * stride, i * stride + kernel)) for i in range(c * count)]
    return [[n * side + i for i in range(side) if i * c // side == part] for n in range(count) for part in range(c)]


def _mean(y: Tensor, rows: list[int], columns: list[int], real: tuple[int, int]) -> Tensor:
    """Average of a map (C, H, W) over the cells that are there; 0 where none is."""
    found = [y[:, i, j] for i in rows for j in columns if i < real[0] and j < real[1]]
    return torch.stack(found).mean(0) if found else torch.zeros_like(y[:, 0, 0])


def hierarchical_attention(module: HierarchicalAttention, x: Tensor) -> Tensor:
    """What ``module(x)`` should be, for one image ``(C, H, W)``, in evaluation mode."""
    channels, height, width = x.shape
    h, w = module.window_size
    n_h, n_w = math.ceil(height / h), math.ceil(width / w)
    real = (height, width) if module.mask_padding else (n_h * h, n_w * w)
    padded = torch.zeros(channels, n_h * h, n_w * w, dtype=x.dtype)
    padded[:, :height, :width] = x
    carriers = None
    if module.carrier_init is not None and n_h * n_w > 1:
        c = module.carrier_size
        y = module.carrier_init.conv(padded[None])[0]
        rows = _cells(h, n_h, c, module.carrier_pooling)
        columns = _cells(w, n_w, c, module.carrier_pooling)
        carriers = torch.stack([torch.stack([_mean(y, row, column, real) for column in columns]) for row in rows])
    supers, side = None, (0, 0)
    if carriers is not None and module.super_init is not None:
        size = carriers.shape[0], carriers.shape[1]
        if size[0] > h or size[1] > w:
            above = math.ceil(size[0] / h), math.ceil(size[1] / w)
            side = math.ceil(size[0] / above[0]), math.ceil(size[1] / above[1])
            whole = torch.zeros(channels, above[0] * side[0], above[1] * side[1], dtype=x.dtype)
            whole[:, : size[0], : size[1]] = carriers.permute(2, 0, 1)
            y = module.super_init.conv(whole[None])[0]
            rows, columns = (_cells(s, n, module.carrier_size, "aligned") for s, n in zip(side, above, strict=True))
            supers = torch.stack([torch.stack([_mean(y, row, column, size) for column in columns]) for row in rows])
    grid = padded.permute(1, 2, 0)
    for block in module.blocks:
        if supers is not None and carriers is not None:
            carriers, supers = _in_windows_of_carriers(block, carriers, supers, side)
        elif carriers is not None:
            carriers = _among_carriers(block, carriers)
        grid, carriers = _block(block, grid, carriers, (h, w), real)
    return grid.permute(2, 0, 1)[:, :height, :width]
