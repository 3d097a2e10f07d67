"""Everything that touches timm's private names, so that a change there is mended in one place."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from timm.layers import ClassifierHead, SelectAdaptivePool2d, register_notrace_function, register_notrace_module
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model_in_modules, register_model
from timm.models._features import FeatureGetterNet, feature_take_indices
from timm.models._registry import register_model_deprecations
from torch import Tensor, nn

__all__ = [
    "FeatureGetterNet",
    "build_model_with_cfg",
    "construction",
    "feature_take_indices",
    "generate_default_cfgs",
    "record_input_size",
    "register_model",
    "register_model_deprecations",
    "register_notrace_function",
    "register_notrace_module",
    "reset_head",
    "resolve_pretrained_cfg",
]

Model = TypeVar("Model", bound=nn.Module)


def resolve_pretrained_cfg(variant: str, cfg: Any, overlay: dict[str, Any] | None) -> dict[str, Any]:
    """The pretrained configuration timm will use for a variant, as a plain dict."""
    from timm.models._builder import resolve_pretrained_cfg as resolve

    resolved = resolve(variant, pretrained_cfg=cfg, pretrained_cfg_overlay=overlay)
    return dict(resolved.to_dict(remove_source=False, remove_null=True))


def record_input_size(model: nn.Module, img_size: tuple[int, int], window_sizes: Sequence[Any]) -> None:
    """Tell timm's hub export that a network was resized, so that it is rebuilt that way (newer timm only)."""
    try:
        from timm.models._input import update_model_input_size
    except ImportError:
        return
    update_model_input_size(model, img_size, window_sizes=tuple(window_sizes))


def construction(model: nn.Module) -> dict[str, Any]:
    """What it takes to create a network again and to feed it: ``model``, ``overrides``, ``input``.

    Empty for a network that is not of this family, for one that no name created, and with a timm that does not record
    options.
    """
    name = getattr(model, "pretrained_cfg", {}).get("architecture")
    options = getattr(model, "_model_args", None)
    if not name or options is None or not is_model_in_modules(name, ["fastervit"]):
        return {}
    kept = {key: value for key, value in options.items() if key not in ("drop_rate", "drop_path_rate")}
    network: Any = model
    pool = network.head.global_pool.pool_type
    now = {"num_classes": network.num_classes, "in_chans": network.in_chans, "global_pool": pool}
    return {"model": name, "overrides": {**kept, **now}, "input": {"size": [network.in_chans, *network.img_size]}}


def reset_head(head: ClassifierHead, num_classes: int, pool: str | None, in_features: int, like: nn.Parameter) -> int:
    """A fresh classifier on ``in_features`` channels, where and as precise as ``like``. Returns its input's width."""
    head.in_features = in_features
    if pool is not None:
        head.global_pool = SelectAdaptivePool2d(pool_type=pool, flatten=bool(pool)).train(head.training)
    head.num_features = width = int(in_features * head.global_pool.feat_mult())
    head.fc = nn.Identity()
    if num_classes > 0:
        head.fc = nn.Linear(width, num_classes, device=like.device, dtype=like.dtype)
    head.fc.train(head.training)
    return width


def build(
    model_cls: type[Model],
    variant: str,
    *,
    pretrained: bool,
    read_weights: Callable[[dict[str, Any], str | None], dict[str, Tensor]],
    filter_fn: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]],
    **kwargs: Any,
) -> Model:
    """Build a registered network the way timm does, with weights read by us.

    ``read_weights`` gets the resolved configuration and timm's ``cache_dir``, and returns a state dict. timm then
    adapts it to ``in_chans``, ``num_classes`` and ``features_only`` as for its own networks.
    """
    if pretrained:
        overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
        cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
        if "state_dict" not in cfg and cfg.get("source") not in ("hf-hub", "local-dir"):
            overlay["state_dict"] = read_weights(cfg, kwargs.get("cache_dir"))
        kwargs["pretrained_cfg_overlay"] = overlay
    model: Model = build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_filter_fn=filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
        **kwargs,
    )
    getattr(model, "pretrained_cfg", {}).pop("state_dict", None)  # do not keep a second copy of the weights alive
    return model
