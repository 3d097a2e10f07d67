"""Which tokens may hear of which, by each design's definition: loops over tokens, no attention and no reshaping.

A relation is a matrix of booleans (hearing, heard). Blocks follow one another by boolean products. All tokens also hear
themselves: every block has a way past it.
"""

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Relation = NDArray[np.bool_]
Cells = list[tuple[int, int]]


def cells(height: int, width: int) -> Cells:
    return list(itertools.product(range(height), range(width)))


def then(*relations: Relation) -> Relation:
    """One relation after another: the last one hears through all."""
    out = relations[0]
    for relation in relations[1:]:
        out = (relation.astype(int) @ out.astype(int)) > 0
    return out


def near(height: int, width: int, reach: int) -> Relation:
    """Tokens at most ``reach`` apart along both axes: a convolution with a kernel of ``2 * reach + 1``."""
    return np.array(
        [[max(abs(i - a), abs(j - b)) <= reach for a, b in cells(height, width)] for i, j in cells(height, width)]
    )


def same_window(height: int, width: int, window: tuple[int, int], shift: tuple[int, int] = (0, 0)) -> Relation:
    """Tokens in one window; the windows' borders are ``shift`` further on."""

    def of(i: int, j: int) -> tuple[int, int]:
        return math.floor((i - shift[0]) / window[0]), math.floor((j - shift[1]) / window[1])

    return np.array([[of(*one) == of(*other) for other in cells(height, width)] for one in cells(height, width)])


def windowed(height: int, width: int, window: tuple[int, int], depth: int) -> Relation:
    return then(*[same_window(height, width, window)] * depth)


def shifted(height: int, width: int, window: tuple[int, int], depth: int) -> Relation:
    shift = [side // 2 if length > side else 0 for length, side in zip((height, width), window, strict=True)]
    blocks = [
        same_window(height, width, window, (shift[0], shift[1]) if block % 2 else (0, 0)) for block in range(depth)
    ]
    return then(*blocks)


def twins(height: int, width: int, window: tuple[int, int], depth: int) -> Relation:
    """Windows, the positional convolution behind the first of them, everything, windows ..."""
    tokens = height * width
    blocks = [same_window(height, width, window), near(height, width, 1)]
    for block in range(1, depth):
        blocks.append(np.ones((tokens, tokens), bool) if block % 2 else same_window(height, width, window))
    return then(*blocks)


def edgevit(height: int, width: int, sampling: int, kernel_size: int, depth: int) -> Relation:
    """Neighbours of the positional convolution and of the aggregation, then the delegates, ..."""
    tokens = cells(height, width)
    delegate = np.array([i % sampling == 0 and j % sampling == 0 for i, j in tokens])
    sparse = np.eye(len(tokens), dtype=bool) | delegate[None, :]
    blocks: list[Relation] = []
    for block in range(depth):
        local = [near(height, width, 1), near(height, width, kernel_size // 2)]
        blocks += [sparse] if block % 2 else local
    return then(*blocks)


def everything(height: int, width: int) -> Relation:
    return np.ones((height * width, height * width), bool)


def _pooled(length: int, side: int, count: int, c: int, pooling: str) -> list[set[int]]:
    """Along an axis of ``count`` windows the positions that each carrier averages, and those a 3-kernel adds."""
    out = []
    for carrier in range(c * count):
        if pooling == "released":
            stride = side // c
            kernel = count * side - (c * count - 1) * stride
            own = set(range(carrier * stride, carrier * stride + kernel))
        else:
            window, part = divmod(carrier, c)
            own = {window * side + i for i in range(side) if i * c // side == part}
        out.append({p for q in own for p in (q - 1, q, q + 1) if 0 <= p < length})
    return out


def _first_carriers(
    size: tuple[int, int], window: tuple[int, int], counts: tuple[int, int], c: int, pooling: str, masked: bool
) -> Relation:
    """(carriers, tokens of the unpadded map). Masked: a cell counts only the map, its convolution sees it all."""
    height, width = size

    def axis(length: int, side: int, count: int) -> list[set[int]]:
        if not masked:
            return _pooled(length, side, count, c, pooling)
        own = []
        for carrier in range(c * count):
            part = divmod(carrier, c)
            inside = {part[0] * side + i for i in range(side) if i * c // side == part[1]}
            inside = {p for p in inside if p < length}
            own.append({p for q in inside for p in (q - 1, q, q + 1) if 0 <= p < length})
        return own

    rows, columns = axis(height, window[0], counts[0]), axis(width, window[1], counts[1])
    return np.array([[i in row and j in column for i, j in cells(height, width)] for row in rows for column in columns])


def hierarchical(
    height: int,
    width: int,
    window: tuple[int, int],
    c: int,
    depth: int,
    *,
    pooling: str = "released",
    levels: int = 1,
    exchange: bool = True,
) -> Relation:
    """Tokens, carriers and carriers of carriers, each with what it has heard of the input so far: (node, tokens).

    ``exchange=False``: carriers do not attend to one another.
    """
    counts = math.ceil(height / window[0]), math.ceil(width / window[1])
    if counts == (1, 1):
        return everything(height, width)
    grid = c * counts[0], c * counts[1]
    tokens, carriers = cells(height, width), cells(*grid)
    two = levels == 2 and (grid[0] > window[0] or grid[1] > window[1])
    above = math.ceil(grid[0] / window[0]), math.ceil(grid[1] / window[1])
    side = math.ceil(grid[0] / above[0]), math.ceil(grid[1] / above[1])
    supers = cells(c * above[0], c * above[1]) if two else []

    heard_tokens = np.eye(len(tokens), dtype=bool)
    heard_carriers = _first_carriers((height, width), window, counts, c, pooling, masked=False)
    heard_supers = np.zeros((0, len(tokens)), bool)
    if two:
        heard_supers = then(heard_carriers, _first_carriers(grid, side, above, c, "aligned", masked=True))

    token_token = same_window(height, width, window)
    token_carrier = _owns(tokens, window, carriers, (c, c))
    carrier_carrier = _owns(carriers, (c, c), carriers, (c, c))
    all_carriers = np.full((len(carriers),) * 2, exchange) | np.eye(len(carriers), dtype=bool)
    for _ in range(depth):
        if two:
            heard_supers = then(heard_supers, np.ones((len(supers),) * 2, bool))
            carrier_super = _owns(carriers, side, supers, (c, c))
            super_super = _owns(supers, (c, c), supers, (c, c))
            in_windows = then(heard_carriers, same_window(*grid, side)) | then(heard_supers, carrier_super)
            heard_supers = then(heard_supers, super_super) | then(heard_carriers, carrier_super.T)
            heard_carriers = in_windows
        else:
            heard_carriers = then(heard_carriers, all_carriers)
        by_tokens = then(heard_tokens, token_token) | then(heard_carriers, token_carrier)
        heard_carriers = then(heard_carriers, carrier_carrier) | then(heard_tokens, token_carrier.T)
        heard_tokens = by_tokens
    return heard_tokens


def _owns(hearing: Cells, side: tuple[int, int], heard: Cells, other: tuple[int, int]) -> Relation:
    """Cells of two grids, cut into equally many windows of ``side`` and of ``other``, that are in the same one."""
    return np.array(
        [[(i // side[0], j // side[1]) == (a // other[0], b // other[1]) for a, b in heard] for i, j in hearing]
    )
