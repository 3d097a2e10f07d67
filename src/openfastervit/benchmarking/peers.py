"""Networks to compare with: timm's, by the names that people use, without their weights."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from openfastervit.models.factory import UnknownModelError, create_model, resolve_name

DEFAULT_PEERS: tuple[str, ...] = (
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
    "swin_tiny",
    "swin_small",
    "twins_svt_small",
    "twins_svt_base",
    "resnet50",
    "efficientvit_b3",
    "efficientvit_l1",
    "efficientvit_l2",
    "fastvit_sa24",
    "fastvit_ma36",
    "mobilenetv4_hybrid_large",
    "tiny_vit_21m_224",
    "nextvit_small",
    "caformer_s18",
    "mambaout_tiny",
)
"""What somebody who looks for a backbone would weigh today."""


CLASSES = 1000
"""Of all networks; some of timm's would have others, as their first weights do."""


def resolve_peer(name: str) -> str:
    """The name that timm has for a network: itself, or one that adds its patch, window and size to it (``swin_tiny``).

    Raises:
        UnknownModelError: If timm has none such, or several; the message names the nearest.
    """
    base, dot, tag = name.partition(".")
    if timm.is_model(base):
        if dot and not timm.is_model_pretrained(name):
            raise UnknownModelError(f"peers: timm has no weights tagged {tag!r} of {base}; leave the tag out")
        return name
    ends = re.compile(rf"{re.escape(base)}(_(patch|window)\d+)*(_\d+)?")
    found = [model for model in timm.list_models() if ends.fullmatch(model)]
    if len(found) == 1:
        return f"{found[0]}{dot}{tag}"
    near = sorted(found) or difflib.get_close_matches(base, timm.list_models(), n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() shows all"
    raise UnknownModelError(f"peers: timm has no network {name!r}; {hint}")


def build_network(name: str, size: tuple[int, int], *, peer: bool, options: Mapping[str, Any] = {}) -> nn.Module:
    """A network with random weights, in evaluation mode, for images of one size. Nothing is downloaded.

    timm's networks of one fixed size are built for the size that is asked for.

    Args:
        name: timm's, or ours.
        size: Height and width of the images.
        peer: Whether it is timm's.
        options: Of the constructor, where it is ours.

    Raises:
        UnknownModelError: If there is no such network.
        ValueError: If the network cannot be built for that size.
    """
    if not peer:
        return create_model(resolve_name(name).partition(".")[0], **options).eval()
    architecture = resolve_peer(name).partition(".")[0]
    config = timm.get_pretrained_cfg(architecture)
    fixed: dict[str, Any] = {"img_size": size} if config is not None and config.fixed_input_size else {}
    try:
        return timm.create_model(architecture, pretrained=False, num_classes=CLASSES, **fixed).eval()
    except (TypeError, AssertionError) as error:  # how timm's networks refuse a size
        raise ValueError(f"{name} cannot be built for {size[0]} x {size[1]}: {error}") from error
