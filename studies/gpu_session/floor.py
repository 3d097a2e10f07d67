"""The least time that a network could take: counted operations and bytes, over what the chip was measured to do.

What is counted is the folded network, one kernel a product: each product (a convolution, a linear layer, attention)
reads its inputs and weights once and writes its result once, and takes the longer of what its multiply-adds and its
bytes ask for. What lies between products (norms, biases, GELU, sums, the way past a block) costs nothing, nor does
starting a kernel; scores of attention stay on the chip. An implementation that keeps results of a product on the chip
until the next one could go below it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import openfastervit
from openfastervit.benchmarking.complexity import on_meta
from openfastervit.inference.fold import FoldedFasterViT, fold

HEAD = "head"
"""The stage of what comes after the last one."""


@dataclass(frozen=True)
class Product:
    """One product of a pass."""

    stage: str
    multiply_adds: int
    values: int
    """Read and written: of inputs, weights and result, each once."""


@dataclass(frozen=True)
class StageFloor:
    """The products of a stage together, for a batch."""

    stage: str
    products: int
    multiply_adds: int
    bytes: int
    compute_ms: float
    """Of the multiply-adds alone."""
    memory_ms: float
    """Of the bytes alone."""
    floor_ms: float
    """Each product the longer of both."""


def floor(
    products: Sequence[Product], *, flop_per_second: float, bytes_per_second: float, bytes_per_value: int = 2
) -> list[StageFloor]:
    """The floor of each stage, in the order of the products.

    Args:
        products: Of a pass.
        flop_per_second: The ceiling of products, two operations a multiply-add.
        bytes_per_second: The ceiling of memory, read and written.
        bytes_per_value: 2 in bfloat16 and float16.
    """
    found = []
    for stage in dict.fromkeys(product.stage for product in products):
        mine = [product for product in products if product.stage == stage]
        compute = [2 * product.multiply_adds / flop_per_second for product in mine]
        memory = [bytes_per_value * product.values / bytes_per_second for product in mine]
        found.append(
            StageFloor(
                stage=stage,
                products=len(mine),
                multiply_adds=sum(product.multiply_adds for product in mine),
                bytes=bytes_per_value * sum(product.values for product in mine),
                compute_ms=1000 * sum(compute),
                memory_ms=1000 * sum(memory),
                floor_ms=1000 * sum(map(max, compute, memory)),
            )
        )
    return found


def products_of(name: str, side: int, batch: int, options: Mapping[str, Any] | None = None) -> list[Product]:
    """The products of a folded FasterViT, of whatever weights.

    Args:
        name: Of the network.
        side: Of the images.
        batch: Images.
        options: Of the constructor.
    """
    with torch.device("meta"):
        network = openfastervit.create_model(name, **(options or {})).eval()
    assert isinstance(network, openfastervit.FasterViT)
    return products(fold(network.to_empty(device="cpu"), side, head_multiple=1), side, batch)


def products(network: FoldedFasterViT, side: int, batch: int) -> list[Product]:
    """The products of a pass of a network, in their order."""
    network = on_meta(network)
    counter = _Counter()
    parts: list[tuple[str, nn.Module]] = [("stem", network.stem)]
    parts += [(f"stage {i}", stage) for i, stage in enumerate(network.stages)]
    handles = []
    for name, part in parts:
        handles.append(part.register_forward_pre_hook(counter.entering(name)))
        handles.append(part.register_forward_hook(counter.entering(HEAD)))
    images = torch.empty(batch, network.in_chans, side, side, device="meta")
    try:
        with counter, torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return counter.found


class _Counter(TorchFunctionMode):
    """Notes each product that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Product] = []
        self._stage = HEAD

    def entering(self, stage: str) -> Callable[..., None]:
        """A hook that says where the pass is."""

        def note(*args: object) -> None:
            self._stage = stage

        return note

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = _MULTIPLY_ADDS.get(func)
        if count is not None:
            given = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
            values = out.numel() + sum(value.numel() for value in given)
            self.found.append(Product(self._stage, count(out, *given), values))
        return out


def _inner(out: Tensor, left: Tensor, *others: Tensor) -> int:
    return out.numel() * left.shape[-1]


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *others: Tensor) -> int:
    return out.numel() * weight[0].numel()


def _attention(out: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> int:
    pairs = q.shape[:-1].numel() * k.shape[-2]
    return pairs * (q.shape[-1] + v.shape[-1])


_MULTIPLY_ADDS: dict[Any, Callable[..., int]] = {
    torch.conv2d: _convolution,
    F.conv2d: _convolution,
    F.linear: _inner,
    F.scaled_dot_product_attention: _attention,
    torch.matmul: _inner,
    torch.bmm: _inner,
    Tensor.matmul: _inner,
    Tensor.__matmul__: _inner,
}
