"""A classification network by name, ours or timm's, with its first weights."""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import timm
from torch import Tensor, nn

from openfastervit.data.imagenet import match_classes
from openfastervit.models import CheckpointError, FasterViT, create_model, read_checkpoint, read_metadata
from openfastervit.models.checkpoints import convert_state_dict
from openfastervit.models.factory import is_timms, resolve_name
from openfastervit.models.fastervit import VARIANTS


def first_network(
    name: str,
    options: Mapping[str, Any],
    *,
    pretrained: bool = False,
    weights: str | None = None,
    img_size: Sequence[int] | None = None,
    windows: Literal["pad", "fit"] = "pad",
    classes: Sequence[str] | None = None,
) -> nn.Module:
    """A network with its first weights, on the CPU.

    Args:
        name: One of ours, or of timm's.
        options: Its options, ``num_classes`` and ``in_chans`` among them.
        pretrained: Download its released weights.
        weights: A checkpoint to start from. Its classifier is kept if it has as many classes and, where the file names
            them, the same ones; else a new one is started, and a warning says so.
        img_size: Height and width; None for the network's own. Attention that is global stays so.
        windows: As ``FasterViT.set_input_size`` takes it.
        classes: Names of the classes that it is to learn.

    Raises:
        UnknownModelError: If neither we nor timm know its name.
        TypeError, ValueError: If it does not take an option.
        CheckpointError: If the weights cannot be had or do not fit it.
    """
    if is_timms(name):
        return _timms(name, options, pretrained, weights, img_size, classes)
    options = {**options, **_global_windows(name, options, img_size)}
    try:
        model = create_model(name, pretrained, weights, **options)
    except CheckpointError as error:
        if not pretrained:
            raise
        raise _naming_weights(error) from error
    assert isinstance(model, FasterViT)
    if weights is not None:
        found = convert_state_dict(read_checkpoint(weights), model, skip=("head.fc.", "stem.conv1."))
        if not _keeps_classifier(weights, found.get("head.fc.weight"), model.num_classes, classes):
            model.reset_classifier(model.num_classes)
    if img_size is not None:
        model.set_input_size(img_size, windows)
    return model


def input_options(name: str, img_size: Sequence[int] | None) -> dict[str, Any]:
    """The option that builds one of timm's networks for an image size, where it takes one.

    Attention over all of the image, as in a ViT, ties such a network to its size.
    """
    if img_size is None:
        return {}
    cfg = timm.get_pretrained_cfg(name)
    return {"img_size": tuple(img_size)} if cfg is not None and cfg.fixed_input_size else {}


def fit_timms(network: nn.Module, weights: Mapping[str, Any], *, skip: Sequence[str] = ()) -> dict[str, Tensor]:
    """Weights in timm's own layout, once they are known to fit one of its networks.

    Args:
        network: Where they are to be loaded.
        weights: A state dict, or a checkpoint that holds one as ``state_dict`` or ``model``.
        skip: Parameters to leave out.

    Raises:
        CheckpointError: If they are not this network's; the message names a key.
    """
    found = {key: value for key, value in timms_weights(weights).items() if key not in skip}
    expected = {key: value for key, value in network.state_dict().items() if key not in skip}
    kind = type(network).__name__
    for lacking, text in ((expected.keys() - found.keys(), "lacks"), (found.keys() - expected.keys(), "has besides")):
        if lacking:
            shown = ", ".join(sorted(lacking)[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
            raise CheckpointError(f"the checkpoint does not fit this {kind}: it {text} {shown}")
    for key, value in found.items():
        if value.shape != expected[key].shape:
            shapes = f"has shape {list(value.shape)}, the network needs {list(expected[key].shape)}"
            raise CheckpointError(f"the checkpoint does not fit this {kind}: {key} {shapes}")
    return found


def timms_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of the container that training scripts put them in."""
    for container in ("state_dict", "model"):
        inner = checkpoint.get(container)
        if isinstance(inner, Mapping):
            checkpoint = inner
            break
    return {str(key).removeprefix("module."): value for key, value in checkpoint.items() if isinstance(value, Tensor)}


def timms_classifier(name: str) -> tuple[str, ...]:
    """Names of the layers that classify in one of timm's networks; most have one."""
    cfg = timm.get_pretrained_cfg(name)
    layers = None if cfg is None else cfg.classifier
    return (layers,) if isinstance(layers, str) else tuple(layers or ())


def _timms(
    name: str,
    options: Mapping[str, Any],
    pretrained: bool,
    weights: str | None,
    img_size: Sequence[int] | None,
    classes: Sequence[str] | None,
) -> nn.Module:
    options = {**input_options(name, img_size), **options}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except (TypeError, ValueError):
        raise
    except Exception as error:  # the hub's client raises errors of several libraries
        if not pretrained:
            raise
        raise _naming_weights(CheckpointError(f"the weights of {name} cannot be had ({error})")) from error
    if weights is None:
        return model
    found = read_checkpoint(weights)
    layers = timms_classifier(name)
    outer = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    try:
        fitting = fit_timms(model, found, skip=outer)
        held = [timms_weights(found).get(f"{layer}.weight") for layer in layers]
        if all(_keeps_classifier(weights, tensor, options["num_classes"], classes) for tensor in held):
            fitting = fit_timms(model, found)
    except CheckpointError as error:
        raise CheckpointError(f"{weights}: {error}") from error
    model.load_state_dict(fitting, strict=False)
    return model


def _global_windows(name: str, options: Mapping[str, Any], img_size: Sequence[int] | None) -> dict[str, Any]:
    """Windows as large as the maps, for one of ours without carriers: as it is released at 224, 384, 512 and 768."""
    variant = {**VARIANTS[resolve_name(name).partition(".")[0]], **options}
    if img_size is None or "window_sizes" in options or any(variant.get("hierarchical", [True])):
        return {}
    maps = [[-(-side // stride) for side in img_size] for stride in (16, 32)]
    return {"window_sizes": [7, 7, *(height if height == width else [height, width] for height, width in maps)]}


def _keeps_classifier(weights: str, held: Tensor | None, count: int, classes: Sequence[str] | None) -> bool:
    """Whether a checkpoint's classifier is one for these classes; where it is not, a warning says why."""
    if held is None:
        why = "it has no classifier"
    elif len(held) != count:
        why = f"its classifier has {len(held)} classes, the data {count}"
    elif classes is not None and not _same_classes(classes, read_metadata(weights).get("classes")):
        why = "its classifier is for other classes, or in another order"
    else:
        return True
    if os.environ.get("RANK", "0") == "0":  # of processes that torchrun or accelerate started, one speaks
        warnings.warn(f"{weights}: {why}; a new classifier of {count} classes is started", stacklevel=4)
    return False


def _same_classes(classes: Sequence[str], told: Any) -> bool:
    """Whether two lists of names mean the same outputs; a file that names none is believed."""
    if not isinstance(told, list):
        return True
    try:
        match = match_classes(classes, [str(name) for name in told], restrict=False)
    except ValueError:
        return False
    return match.labels.tolist() == list(range(len(told)))


def _naming_weights(error: CheckpointError) -> CheckpointError:
    """An error of a download, with the way to do without in the words of a recipe and of the command line."""
    return CheckpointError(
        f"{error}; when training, pass it as --weights PATH (weights: PATH in a recipe), or start from random weights "
        "with --no-pretrained"
    )
