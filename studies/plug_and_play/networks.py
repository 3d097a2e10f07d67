"""timm's Swin-T with hierarchical attention in place of its plain and shifted windows.

Importing this registers ``swin_tiny_hat`` with timm: it takes the options of ``swin_tiny_patch4_window7_224``, and a
recipe can name it.
"""

from typing import Any

import timm
from timm.models import generate_default_cfgs, register_model
from timm.models.swin_transformer import SwinTransformer

from studies.plug_and_play.hosts import plug_into_swin

SWIN = "swin_tiny_patch4_window7_224"
SWIN_HAT = "swin_tiny_hat"

_CFG = timm.get_pretrained_cfg(SWIN)
assert _CFG is not None
default_cfgs = generate_default_cfgs({SWIN_HAT: {**_CFG.to_dict(), "hf_hub_id": None}})


@register_model
def swin_tiny_hat(pretrained: bool = False, **kwargs: Any) -> SwinTransformer:
    """Swin-T with hierarchical attention, as the guide plugs it in; there are no released weights.

    Raises:
        ValueError: If released weights are asked for.
    """
    if pretrained:
        raise ValueError("pretrained=True: there are no released weights of swin_tiny_hat; leave it out")
    swin = timm.create_model(SWIN, **kwargs)
    assert isinstance(swin, SwinTransformer)
    plug_into_swin(swin)
    return swin
