"""First weights of networks with a backbone and a head: a classifier's for the backbone, or a whole network's."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from openfastervit.models import CheckpointError, read_checkpoint, read_metadata
from openfastervit.models.factory import is_timms
from openfastervit.models.features import Backbone, DenseNetwork, create_backbone
from openfastervit.tasks.network_settings import NetworkSettings


def first_backbone(settings: NetworkSettings, *, strides: Sequence[int], size: Sequence[int]) -> Backbone:
    """The backbone that settings ask for, with its first weights.

    Args:
        settings: Which one. ``weights`` of a whole network are left to ``start_from``.
        strides: Of its maps.
        size: Height and width of the images that ``windows="fit"`` chooses windows for.

    Raises:
        UnknownModelError: If neither we nor timm know its name.
        ValueError: If it does not take an option.
        CheckpointError: If the weights cannot be had or do not fit it.
    """
    options = {"drop_path_rate": settings.drop_path, **settings.model_options}
    whole = settings.weights is not None and _task_of(settings.weights) is not None
    sized = settings.windows == "fit" or is_timms(settings.model)
    try:
        return create_backbone(
            settings.model,
            pretrained=settings.pretrained,
            weights=None if whole else settings.weights,
            options=options,
            strides=strides,
            img_size=size if sized else None,
            windows=settings.windows,
        )
    except TypeError as error:
        raise ValueError(f"model_options={settings.model_options}: {error}") from error


def backbone_plan(settings: NetworkSettings, size: Sequence[int]) -> dict[str, Any]:
    """What a checkpoint tells of the backbone that ``first_backbone`` made, so that it can be made again.

    Its windows follow from the size where they were fitted to it; those of timm's networks of one fixed size always do.
    """
    return {
        "model": settings.model,
        "overrides": dict(settings.model_options),
        "windows": settings.windows,
        "built_size": [int(side) for side in size],
    }


def start_from(network: DenseNetwork, weights: str | None, task: str) -> None:
    """Load a checkpoint of a whole network, as a run of the same task left it, into one that is about to be trained.

    What depends on the number of classes starts anew where that differs, and a warning says so. A classifier's
    checkpoint is passed over: ``first_backbone`` has taken it.

    Raises:
        CheckpointError: If it is of another task or another network.
    """
    if weights is None:
        return
    told = _task_of(weights)
    if told is None:
        return
    if told != task:
        raise CheckpointError(f"weights={weights} were trained for {told}, not for {task}; take a classifier's instead")
    found = {name: value for name, value in read_checkpoint(weights).items() if isinstance(value, Tensor)}
    own = network.state_dict()
    strange = sorted(found.keys() ^ own.keys())
    if strange:
        raise CheckpointError(
            f"weights={weights} are of another network: {strange[0]} is in one of the two alone; ask for the same "
            "model, head and options"
        )
    other = sorted(name for name, value in found.items() if value.shape != own[name].shape)
    backbone = [name for name in other if name.startswith(f"{network.backbone_name}.")]
    if backbone:
        name = backbone[0]
        shapes = f"{list(found[name].shape)} there and {list(own[name].shape)} here"
        raise CheckpointError(f"weights={weights} are of another network: {name} is {shapes}; ask for the same model")
    if other:
        warnings.warn(
            f"{weights}: {', '.join(other[:3])}{' and others' if len(other) > 3 else ''} have other shapes here, as "
            "for other classes, and start anew",
            stacklevel=3,
        )
    network.load_state_dict({name: value for name, value in found.items() if name not in other}, strict=False)


def _task_of(weights: str) -> str | None:
    """The task of a whole network's checkpoint; None for classifiers and backbones."""
    task = read_metadata(weights).get("task")
    return None if task in (None, "classification") else str(task)
