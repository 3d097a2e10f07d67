"""What the tokens of a window attend to: of one chosen cell, and in sum.

In a block every token of a window attends to all of them, and to the window's carriers where there are any. Attention
is averaged over heads; a token's attention to tokens, to carriers and to the map's padding sums to 1.

Shapes: ``B`` batch, ``H x W`` the stage's map, ``h x w`` a window, so ``N = h * w`` tokens, ``n_h x n_w`` windows,
``K`` carriers a window.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from openfastervit.inference.explain.subject import Mode, NothingToShowError, check_model, over_image, windowed_stages
from openfastervit.layers import Attention, AttentionBlock, HierarchicalAttention
from openfastervit.layers.windows import map_to_windows, pad_to_windows, window_counts, windows_to_map


@dataclass(frozen=True)
class WindowAttention:
    """What the tokens of one attention block attend to inside their windows, for a batch of images."""

    name: str
    """The block, as in ``model.get_submodule(name)``."""
    weights: Tensor
    """``(B, n_h, n_w, N, K + N)``: each token's attention to its window's carriers, then tokens, summing to 1.

    Tokens are in row-major order; those of the map's padding are among them.
    """
    window: tuple[int, int]
    """Height and width of a window, in cells."""
    size: tuple[int, int]
    """Height and width of the map, in cells."""
    stride: int
    """Height and width of a cell, in pixels of the image."""
    image_size: tuple[int, int]
    """Height and width of the images, in pixels."""

    @property
    def carriers(self) -> int:
        """``K``: carriers a window."""
        return self.weights.shape[4] - self.weights.shape[3]

    def from_cell(self, row: int, column: int) -> Tensor:
        """``(B, H, W)``: what the token of one cell attends to. 0 outside of its window.

        It sums to 1 less what goes to carriers and padding. The cell of a pixel: its row and column divided by
        ``stride``, rounded down.

        Raises:
            ValueError: If there is no such cell.
        """
        if not (0 <= row < self.size[0] and 0 <= column < self.size[1]):
            raise ValueError(
                f"row={row}, column={column} is no cell of a map of {self.size[0]} x {self.size[1]}; "
                f"cells count from 0, and are {self.stride} pixels high and wide"
            )
        h, w = self.window
        tokens = torch.zeros(*self.weights.shape[:3], h * w, device=self.weights.device)
        tokens[:, row // h, column // w] = self._to_tokens()[:, row // h, column // w, row % h * w + column % w]
        return self._map(tokens)

    def to_carriers(self) -> Tensor:
        """``(B, H, W)``: the share of its attention that each cell gives to its window's carriers."""
        return self._map(self.weights[..., : self.carriers].sum(dim=-1))

    def to_padding(self) -> Tensor:
        """``(B, H, W)``: the share of its attention that each cell gives to the map's padding."""
        return self._map((self._to_tokens() * (1 - self._real())[:, :, None]).sum(dim=-1))

    def received(self) -> Tensor:
        """``(B, H, W)``: the attention that each cell receives, averaged over the cells of its window.

        Over a window it sums to 1 less what its cells give to carriers and padding, on average.
        """
        real = self._real()
        queries = real / real.sum(dim=-1, keepdim=True)
        return self._map(torch.einsum("bvwqk,vwq->bvwk", self._to_tokens(), queries))

    def relative(self) -> Tensor:
        """``(B, H, W)``: ``received`` as a multiple of its mean over the window: 1 where attention is even."""
        received, real = self._tokens(self.received()), self._real()
        mean = (received * real).sum(dim=-1, keepdim=True) / real.sum(dim=-1, keepdim=True)
        return self._map(received / mean.clamp_min(torch.finfo(received.dtype).tiny))

    def over_image(self, maps: Tensor, mode: Mode = "nearest") -> Tensor:
        """One of these maps in pixels, for display: ``(B, H, W)`` to ``(B, image height, image width)``."""
        return over_image(maps, self.stride, self.image_size, mode)

    def _to_tokens(self) -> Tensor:
        """``(B, n_h, n_w, N, N)``."""
        return self.weights[..., self.carriers :]

    def _real(self) -> Tensor:
        """``(n_h, n_w, N)``: 1 for a cell of the map, 0 for padding."""
        return self._tokens(torch.ones(1, *self.size, device=self.weights.device))[0]

    def _tokens(self, maps: Tensor) -> Tensor:
        """By window, 0 in the padding: ``(B, H, W) -> (B, n_h, n_w, N)``."""
        counts = window_counts(*self.size, self.window)
        padded = pad_to_windows(maps[:, None], self.window, counts)
        return map_to_windows(padded, self.window, counts).view(maps.shape[0], *counts, -1)

    def _map(self, tokens: Tensor) -> Tensor:
        """Back on the map, without padding: ``(B, n_h, n_w, N) -> (B, H, W)``."""
        counts = tokens.shape[1], tokens.shape[2]
        maps = windows_to_map(tokens.reshape(-1, tokens.shape[3], 1), self.window, counts)
        return maps[:, 0, : self.size[0], : self.size[1]]


@torch.no_grad()
def window_attention(model: nn.Module, images: Tensor) -> tuple[WindowAttention, ...]:
    """What the tokens of each attention block attend to inside their windows. The model is left as it was.

    Args:
        model: A ``FasterViT`` in evaluation mode.
        images: ``(B, in_chans, H, W)``, prepared as for a prediction, of any height and width.

    Returns:
        One entry for each block of a stage of windows, in the network's order, in float32.

    Raises:
        TypeError: If the model is not a FasterViT.
        ValueError: If it is in training mode.
        NothingToShowError: If no stage attends inside windows. A ``ValueError``.
    """
    model = check_model(model)
    with ExitStack() as stack:
        recordings = [(index, stage, stack.enter_context(_recording(stage))) for index, stage in windowed_stages(model)]
        if not recordings:
            raise NothingToShowError(
                "no stage of the network attends inside windows; window attention is that of "
                'attention="hat" and attention="window"'
            )
        model(images)
    found = []
    for index, stage, recording in recordings:
        counts = window_counts(*recording.size, stage.window_size)
        for block, weights in enumerate(recording.weights):
            found.append(
                WindowAttention(
                    name=f"stages.{index}.attention.blocks.{block}",
                    weights=weights.view(-1, *counts, *weights.shape[1:]),
                    window=stage.window_size,
                    size=recording.size,
                    stride=model.feature_info[index]["reduction"],
                    image_size=(images.shape[2], images.shape[3]),
                )
            )
    return tuple(found)


@dataclass
class _Recording:
    """What one stage did in a call."""

    size: tuple[int, int] = (0, 0)
    """Height and width of its map."""
    weights: list[Tensor] = field(default_factory=list)
    """A block: ``(B*n_h*n_w, N, K + N)``."""


@contextmanager
def _recording(stage: HierarchicalAttention) -> Iterator[_Recording]:
    """Record what a stage does, by hooks that are gone afterwards, whatever happens."""
    recording = _Recording()
    tokens = stage.window_size[0] * stage.window_size[1]

    def see_map(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        recording.size = inputs[0].shape[2], inputs[0].shape[3]

    def see_window(attention: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(attention, Attention)
        recording.weights.append(attention.weights(*inputs).mean(dim=1)[:, -tokens:])

    with ExitStack() as stack:
        stack.callback(stage.register_forward_pre_hook(see_map).remove)
        for block in stage.blocks:
            assert isinstance(block, AttentionBlock)
            stack.callback(block.window.attn.register_forward_pre_hook(see_window).remove)
        yield recording
