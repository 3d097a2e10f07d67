"""Networks by name."""

import difflib
import fnmatch
import inspect
import os
import warnings
from collections.abc import Sequence
from typing import Any

import timm
from timm.models import adapt_input_conv
from torch import nn

from openfastervit.models.checkpoints import (
    CheckpointError,
    convert_state_dict,
    load_checkpoint,
    read_checkpoint,
    read_metadata,
)
from openfastervit.models.fastervit import ALIASES, VARIANTS, FasterViT, default_cfgs
from openfastervit.models.layouts import RELEASED_OPTIONS

TIMM_OPTIONS = (
    "features_only",
    "out_indices",
    "feature_cls",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
)


class UnknownModelError(ValueError):
    """No network has that name."""


def list_models(pattern: str = "*") -> list[str]:
    """Names of the family, smallest first; ``pattern`` is a shell pattern."""
    return fnmatch.filter(VARIANTS, pattern)


def resolve_name(name: str) -> str:
    """Our name for a network: an alias is replaced, a tag (``fastervit_0.in1k``) kept.

    Raises:
        UnknownModelError: With the nearest names.
    """
    base, dot, tag = name.partition(".")
    base = ALIASES.get(base, base)
    if base not in VARIANTS:
        near = difflib.get_close_matches(base, [*VARIANTS, *ALIASES], n=3, cutoff=0.4) or list(VARIANTS)[:3]
        raise UnknownModelError(
            f"unknown model {name!r}; did you mean {', '.join(near)}? `fastervit list` and list_models() show all"
        )
    if dot and tag not in default_cfgs[base].cfgs:
        raise UnknownModelError(f"unknown tag {tag!r} of {base}; there is {', '.join(default_cfgs[base].cfgs)}")
    return f"{base}{dot}{tag}"


def is_timms(name: str) -> bool:
    """Whether a network is one of timm's own.

    Raises:
        UnknownModelError: If neither we nor timm know it, with the nearest names of ours.
    """
    try:
        resolve_name(name)
    except UnknownModelError:
        if timm.is_model(name.partition(".")[0]):
            return True
        raise
    return False


def _check_options(overrides: Sequence[str]) -> None:
    allowed = [*inspect.signature(FasterViT).parameters, *TIMM_OPTIONS]
    for option in overrides:
        if option in allowed:
            continue
        near = [RELEASED_OPTIONS[option]] if option in RELEASED_OPTIONS else difflib.get_close_matches(option, allowed)
        hint = f"; did you mean {near[0]}?" if near else f"; options are {', '.join(allowed)}"
        raise TypeError(f"unknown option {option!r} of a FasterViT{hint}")


def _recorded(checkpoint: str | os.PathLike[str], overrides: dict[str, Any]) -> str:
    """What a file of ours says of its network's options, where they are not those asked for."""
    recorded = read_metadata(checkpoint).get("overrides") or {}
    differing = {
        key: value for key, value in recorded.items() if overrides.get(key, value) != value or key not in overrides
    }
    if not differing:
        return ""
    told = ", ".join(f"{k}={v!r}" for k, v in differing.items())
    return f"; the file was saved from a network with {told}: ask for the same options"


SAME_WEIGHTS = ("attention", "carrier_pooling", "mask_padding")
"""Options that decide what a network computes and that its weights may not tell."""


def _warn_of_another_network(checkpoint: str | os.PathLike[str], overrides: dict[str, Any]) -> None:
    """Weights that fit may be of a network that computes something else."""
    recorded = read_metadata(checkpoint).get("overrides") or {}
    defaults = inspect.signature(FasterViT).parameters
    for option in SAME_WEIGHTS:
        saved, asked = (given.get(option, defaults[option].default) for given in (recorded, overrides))
        if (list(saved) if isinstance(saved, tuple) else saved) != (list(asked) if isinstance(asked, tuple) else asked):
            warnings.warn(
                f"{checkpoint} was saved from a network with {option}={saved!r}, this one has {option}={asked!r}: its "
                "answers will be others",
                stacklevel=3,
            )


def create_model(
    name: str,
    pretrained: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> nn.Module:
    """Build a network of the family.

    Args:
        name: ``fastervit_0`` ... ``fastervit_6``, ``fastervit_4_w14_224`` ...; the released names work too.
        pretrained: Download the released weights (for non-commercial use only).
        checkpoint: A file with weights instead, in the released layout or ours.
        **overrides: Arguments of ``FasterViT`` (``num_classes=10``, ``in_chans=1``, ``img_size=...``, ...) and timm's
            ``features_only=True``, ``out_indices=...``. Asking for ``num_classes`` other than the checkpoint's starts a
            new classifier; asking for other ``in_chans`` adapts the first convolution as timm does.

    Returns:
        A ``FasterViT``, or with ``features_only`` timm's feature extractor around one.

    Raises:
        UnknownModelError: If the name is unknown; the message has the nearest ones.
        TypeError: If an option is unknown.
        ValueError: If an option is out of range.
        FileNotFoundError, CheckpointError: If the weights cannot be had or do not fit.
    """
    name = resolve_name(name)
    _check_options(list(overrides))
    if checkpoint is None:
        return timm.create_model(name, pretrained=pretrained, **overrides)
    if pretrained:
        raise ValueError("pretrained=True and checkpoint=... both name weights; give one of them")
    weights = read_checkpoint(checkpoint)
    features_only = overrides.pop("features_only", False)
    features = {key: overrides.pop(key) for key in ("out_indices", "feature_cls") if key in overrides}
    model = timm.create_model(name, **overrides)
    try:
        weights = convert_state_dict(weights, model, skip=("head.fc.", "stem.conv1."))
        in_chans = weights["stem.conv1.weight"].shape[1] if "stem.conv1.weight" in weights else 0
        if "in_chans" in overrides and in_chans == 3 != overrides["in_chans"]:
            weights["stem.conv1.weight"] = adapt_input_conv(overrides["in_chans"], weights["stem.conv1.weight"])
        load_checkpoint(model, weights, new_classifier="num_classes" in overrides or features_only)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}{_recorded(checkpoint, overrides)}") from error
    _warn_of_another_network(checkpoint, overrides)
    if not features_only:
        return model
    overlay = {**(overrides.pop("pretrained_cfg_overlay", None) or {}), "state_dict": model.state_dict()}
    return timm.create_model(
        name, pretrained=True, features_only=True, pretrained_cfg_overlay=overlay, **features, **overrides
    )
