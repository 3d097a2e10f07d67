"""Backbones inside the networks of Hugging Face's transformers. Import it where it is used: it needs that library."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields
from difflib import get_close_matches
from typing import Any, TypeVar

from timm.models import FeatureInfo
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn

from openfastervit.models.features import STRIDES, Backbone, create_backbone
from openfastervit.models.timm_compat import construction

try:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import (
        AutoBackbone,
        AutoConfig,
        Mask2FormerConfig,
        PreTrainedConfig,
        PreTrainedModel,
        TimmBackbone,
        TimmBackboneConfig,
    )
    from transformers.modeling_outputs import BackboneOutput
except ImportError as error:
    raise ValueError(
        f"this network is one of transformers', which cannot be imported ({error}); install it with: "
        "pip install 'openfastervit[segmentation]'"
    ) from error

Network = TypeVar("Network", bound=PreTrainedModel)
Config = TypeVar("Config", bound=PreTrainedConfig)


class BackboneConfig(TimmBackboneConfig):
    """A backbone as configurations in transformers name it: a network, its options and the maps it gives.

    ``UperNetConfig(backbone_config=BackboneConfig(backbone="fastervit_0", options={"dim": 32}))`` makes one with random
    weights. ``timm``'s plain ``TimmBackboneConfig`` takes our networks too, but no options.

    Args:
        backbone: One of ours, or of timm's.
        options: Other options of the network.
        strides: Of its maps; ``out_indices`` follows from them.
        stages: Of a network that is to be put in later, by ``build_around``: timm's ``feature_info``. None is made.
    """

    model_type = "openfastervit_backbone"

    options: dict[str, Any] = field(default_factory=dict)
    strides: list[int] = field(default_factory=lambda: list(STRIDES))
    stages: list[dict[str, Any]] | None = None


class _Place(nn.Module):
    """Where a backbone will be put. It tells of maps, and gives none."""

    def __init__(self, stages: Sequence[Mapping[str, Any]], out_indices: Sequence[int]) -> None:
        super().__init__()
        self.feature_info = FeatureInfo([dict(stage) for stage in stages], tuple(out_indices))

    def forward(self, x: Tensor) -> list[Tensor]:
        raise ValueError(
            "this configuration tells of a backbone that no name makes; build the network with build_around"
        )


class TransformersBackbone(TimmBackbone):
    """A ``Backbone`` (its attribute ``_backbone``) with the manners that transformers' networks count on."""

    config_class = BackboneConfig
    config: BackboneConfig

    def __init__(self, config: BackboneConfig, **kwargs: Any) -> None:
        if kwargs:
            raise TypeError(f"unknown arguments {', '.join(kwargs)}; options belong into the configuration")
        backbone: nn.Module
        if config.stages is not None:
            backbone = _Place(config.stages, config.out_indices)
        elif config.backbone is None:
            raise ValueError("backbone=None names no network; give one of ours, such as fastervit_0, or of timm's")
        else:
            options = {"in_chans": config.num_channels, **config.options}
            if config.output_stride is not None:
                options["output_stride"] = config.output_stride
            backbone = create_backbone(config.backbone, options=options, strides=config.strides)
            indices = list(backbone.feature_info.out_indices)
            if config.out_indices not in (None, [-1], indices):
                raise ValueError(
                    f"out_indices={config.out_indices} are not the maps of strides={config.strides}, which are "
                    f"{indices}; choose them by strides alone"
                )
        super(TimmBackbone, self).__init__(config, timm_backbone=backbone)
        self._backbone = backbone
        if config.freeze_batch_norm_2d:
            freeze_batch_norm_2d(self._backbone)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Maps ``(B, C_i, H_i, W_i)`` of images ``(B, C, H, W)``. What they are made of inside is not kept."""
        if output_attentions:
            raise ValueError("output_attentions=True: backbones do not keep their attention; leave it out")
        maps = tuple(self._backbone(pixel_values))
        output = BackboneOutput(feature_maps=maps, hidden_states=maps if output_hidden_states else None)
        return output if return_dict is not False else output.to_tuple()


def _register() -> None:
    """Make configurations find the backbone; doing so again changes nothing."""
    AutoConfig.register(BackboneConfig.model_type, BackboneConfig, exist_ok=True)
    AutoBackbone.register(BackboneConfig, TransformersBackbone, exist_ok=True)
    if BackboneConfig.model_type not in Mask2FormerConfig.backbones_supported:  # it warns of all others
        Mask2FormerConfig.backbones_supported = [*Mask2FormerConfig.backbones_supported, BackboneConfig.model_type]


_register()


def build_around(backbone: Backbone, make: Callable[[BackboneConfig], Network]) -> tuple[Network, str]:
    """A network of transformers around a backbone that is there already.

    Those networks make their backbones themselves, and some then draw its weights anew or freeze its batch norm. So the
    network is made around an empty place, and the backbone put in afterwards: nothing in it is changed.

    Args:
        backbone: The very object that will be in the network.
        make: The network, with random weights, from its backbone's configuration.

    Returns:
        The network, and the name of the submodule that is the backbone.
    """
    info = backbone.feature_info.get_dicts(idx=list(range(len(backbone.feature_info))))
    config = BackboneConfig(stages=[_plain(stage) for stage in info], strides=backbone.strides)
    config.out_indices = list(backbone.feature_info.out_indices)
    network = make(config)
    names = [name for name, module in network.named_modules() if isinstance(module, _Place)]
    assert len(names) == 1
    network.set_submodule(names[0], backbone)
    told = construction(backbone.model)
    if told:  # so that ``from_pretrained`` can make it
        config = network.config.backbone_config
        config.stages, config.backbone = None, told["model"]
        config.num_channels = told["overrides"].pop("in_chans")
        config.options = {key: told["overrides"][key] for key in told["overrides"] if key not in _HEADS}
    return network, names[0]


_HEADS = ("num_classes", "global_pool")
"""Options of a classifier, which a backbone has lost."""


def _plain(stage: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage's map is like, as JSON may hold it."""
    return {key: stage[key] for key in ("num_chs", "reduction", "module", "index")}


def make_config(kind: type[Config], options: Mapping[str, Any], **fixed: Any) -> Config:
    """A configuration of one of transformers' networks, with options checked: it would take unknown ones in silence.

    Args:
        kind: The configuration's class.
        options: By the names of its fields.
        **fixed: Other fields, which options must not name.

    Raises:
        ValueError: If an option is unknown, fixed, or of a wrong type; the message has the nearest names.
    """
    known = {entry.name for entry in fields(kind)} - {entry.name for entry in fields(PreTrainedConfig)}
    known -= fixed.keys()
    for name in options:
        if name in fixed:
            raise ValueError(f"option {name!r} follows from the backbone and the classes; leave it out")
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(sorted(known))}"
            raise ValueError(f"unknown option {name!r} of {kind.__name__.removesuffix('Config')}; {hint}")
    try:
        return kind(**fixed, **options)
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error).split())) from error


def sum_over_layers(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Losses of a decoder, with those of its layers and of denoising queries (``_0``, ``_aux_0``, ``_dn_0``) summed."""
    sums: dict[str, Tensor] = {}
    for name, loss in losses.items():
        base = re.sub(r"(_aux|_dn)?_\d+$", "", name)
        sums[base] = sums[base] + loss if base in sums else loss
    return sums


__all__ = ["BackboneConfig", "TransformersBackbone", "build_around", "make_config", "sum_over_layers"]
