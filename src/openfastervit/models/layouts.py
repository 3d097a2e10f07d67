"""The released layout and ours: the names of parameters and of options.

``released_keys`` is the one table between the two; both directions follow from it.
"""

import re
from collections.abc import Mapping
from typing import Any

_STEM = {"conv1": "0", "norm1": "1", "conv2": "3", "norm2": "4"}
_BLOCK = {
    "window_position.mlp.fc1": "pos_embed.cpb_mlp.0",
    "window_position.mlp.fc2": "pos_embed.cpb_mlp.2",
    "carrier_position.mlp.fc1": "hat_pos_embed.cpb_mlp.0",
    "carrier_position.mlp.fc2": "hat_pos_embed.cpb_mlp.2",
    "carrier.scale1.gamma": "gamma1",
    "carrier.scale2.gamma": "gamma2",
    "window.scale1.gamma": "gamma3",
    "window.scale2.gamma": "gamma4",
    **{
        f"{ours}.{part}": f"{theirs}{released}"
        for ours, theirs in (("window", ""), ("carrier", "hat_"))
        for part, released in (
            ("norm1", "norm1"),
            ("norm2", "norm2"),
            ("attn", "attn"),
            ("mlp", "mlp"),
            ("bias.mlp.fc1", "attn.pos_emb_funct.cpb_mlp.0"),
            ("bias.mlp.fc2", "attn.pos_emb_funct.cpb_mlp.2"),
        )
    },
}
_CONV_BLOCK = ("conv1", "norm1", "conv2", "norm2")
"""The same names in both."""
CACHED = re.compile(r"\.(relative_bias|relative_coords_table|relative_position_index)$")
"""Keys of values that follow from the parameters: dropped, never trusted."""


def released_keys(key: str) -> tuple[str, ...]:
    """The names a parameter of ours has in the released layout: one, or two for the carrier initialiser.

    None for a parameter that no released network has, as those of other designs of attention.
    """
    part, _, rest = key.partition(".")
    if part == "stem":
        name, _, tail = rest.partition(".")
        return (f"patch_embed.conv_down.{_STEM[name]}.{tail}",) if name in _STEM else ()
    if part == "norm":
        return (key,)
    if part == "head":
        return (f"head.{rest.removeprefix('fc.')}",)
    match = re.fullmatch(r"stages\.(\d+)\.(.+)", key)
    if not match:
        return ()
    stage, rest_of_stage = int(match[1]), match[2]
    rest = rest_of_stage.removeprefix("attention.")
    if rest.startswith("downsample."):
        name = rest.removeprefix("downsample.")
        return (f"levels.{stage - 1}.downsample.{name.replace('conv.', 'reduction.0.')}",)
    if rest.startswith("carrier_init.conv."):
        name = rest.removeprefix("carrier_init.conv.")
        tokenizer = f"levels.{stage}.global_tokenizer"
        return f"{tokenizer}.pos_embed.{name}", f"{tokenizer}.to_global_feature.pos.{name}"
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", rest)
    if not match:
        return ()
    block = f"levels.{stage}.blocks.{match[1]}"
    for ours, theirs in _BLOCK.items():
        if match[2] == ours or match[2].startswith(f"{ours}."):
            return (f"{block}.{theirs}{match[2].removeprefix(ours)}",)
    if rest != rest_of_stage or match[2].partition(".")[0] not in _CONV_BLOCK:
        return ()
    return (f"{block}.{match[2]}",)


RELEASED_OPTIONS = {
    "in_dim": "stem_dim",
    "window_size": "window_sizes",
    "ct_size": "carrier_size",
    "hat": "hierarchical",
    "do_propagation": "propagate_carriers",
    "resolution": "img_size",
}
"""Options that changed their name from the released configuration to ours."""


def from_released_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of ``FasterViT`` from a configuration in the released names."""
    out = {RELEASED_OPTIONS.get(key, key): value for key, value in config.items()}
    return {"hierarchical": (False, False, True, False), "layer_scale": None, "propagate_carriers": False, **out}
