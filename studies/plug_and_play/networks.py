"""timm's Swin-T with hierarchical attention in place of its plain and shifted windows.

Importing this registers ``swin_tiny_hat`` with timm: it takes the options of ``swin_tiny_patch4_window7_224``, and a
recipe can name it.
"""

from typing import Any

import timm
from timm.models import generate_default_cfgs, register_model
from timm.models.swin_transformer import SwinTransformer, SwinTransformerStage
from torch import Tensor, nn

from openfastervit.layers import HierarchicalAttention

SWIN = "swin_tiny_patch4_window7_224"
SWIN_HAT = "swin_tiny_hat"

_CFG = timm.get_pretrained_cfg(SWIN)
assert _CFG is not None
default_cfgs = generate_default_cfgs({SWIN_HAT: {**_CFG.to_dict(), "hf_hub_id": None}})


class HatBlocks(nn.Module):
    """All blocks of a stage at once, on Swin's maps, whose channels come last."""

    def __init__(self, attention: HierarchicalAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        return self.attention(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def use_hat(swin: SwinTransformer, *, carrier_size: int = 2) -> SwinTransformer:
    """Replace the blocks of each stage by hierarchical attention of equal width, heads, window, depth and drop path.

    A stage whose map is a single window gets no carriers, as in FasterViT.

    Args:
        swin: It is changed.
        carrier_size: Each window has ``carrier_size ** 2`` carriers.

    Returns:
        The same network.
    """
    for stage in swin.layers:
        assert isinstance(stage, SwinTransformerStage)
        blocks: list[Any] = list(stage.blocks.children())
        first = blocks[0]
        attention = HierarchicalAttention(
            first.dim,
            first.attn.num_heads,
            window_size=first.window_size,
            carrier_size=carrier_size,
            depth=len(blocks),
            hierarchical=tuple(first.input_resolution) != tuple(first.window_size),
            mlp_ratio=first.mlp_ratio,
            drop_path=[float(getattr(block.drop_path1, "drop_prob", 0.0)) for block in blocks],
        )
        stage.blocks = nn.Sequential(HatBlocks(attention))
    return swin


@register_model
def swin_tiny_hat(pretrained: bool = False, **kwargs: Any) -> SwinTransformer:
    """Swin-T with hierarchical attention; there are no released weights.

    Raises:
        ValueError: If released weights are asked for.
    """
    if pretrained:
        raise ValueError("pretrained=True: there are no released weights of swin_tiny_hat; leave it out")
    swin = timm.create_model(SWIN, **kwargs)
    assert isinstance(swin, SwinTransformer)
    return use_hat(swin)
