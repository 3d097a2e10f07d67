"""What settings of the network do to a run of detection or segmentation: what is frozen, what is recomputed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from openfastervit.data.loader import Place, seed_everything
from openfastervit.inference.dense import load_detector, load_segmenter
from openfastervit.models.features import DenseNetwork
from openfastervit.tasks.task import Task
from openfastervit.training.recipe import Recipe, make_recipe
from openfastervit.training.run import RECIPES, TASKS, start
from tests.shapes import BACKBONE, RCNN, UPERNET, write_coco, write_semantic

COMMON: dict[str, Any] = {
    "model_options": BACKBONE,
    "drop_path": 0.0,
    "epochs": 1,
    "warmup_epochs": 0.0,
    "batch_size": 4,
    "lr": 0.01,
    "lr_batch": None,
    "workers": 0,
    "device": "cpu",
}
Make = Callable[..., Recipe]


@pytest.fixture(scope="module")
def recipe_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("data")
    write_coco(folder / "coco", train=4, val=2)
    write_semantic(folder / "scenes", train=4, val=2)
    own: dict[str, dict[str, Any]] = {
        "detection": {"data": str(folder / "coco"), "min_sizes": [96], "max_size": 160, "head_options": RCNN},
        "segmentation": {"data": str(folder / "scenes"), "crop_size": [64], "head_options": UPERNET},
    }
    return lambda task, **changes: make_recipe({**COMMON, **own[task], **changes}, RECIPES[task])


def first_weights(recipe: Recipe) -> dict[str, Tensor]:
    """Of the network that a run of this recipe starts with."""
    seed_everything("weights", recipe.seed)
    network: nn.Module = TASKS[recipe.task](recipe, seed=recipe.seed).build()
    return network.state_dict()


def changed(recipe: Recipe, out: Path) -> tuple[set[str], set[str], str]:
    """Names of what a run changed, and of what it left; and where the backbone is."""
    before = first_weights(recipe)
    start(recipe, out)
    after = load_file(out / "last.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    network: DenseNetwork = TASKS[recipe.task](recipe, seed=recipe.seed).build()
    return moved, before.keys() - moved, f"{network.backbone_name}."


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_all_of_a_network_learns(recipe_of: Make, task: str, tmp_path: Path) -> None:
    moved, still, backbone = changed(recipe_of(task), tmp_path / "run")
    assert not {name for name in still if name.startswith(backbone) and is_statistic(name)}
    assert len([name for name in moved if name.startswith(backbone)]) > 50
    assert any(not name.startswith(backbone) for name in moved)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_frozen_backbone_stays_as_it_is(recipe_of: Make, task: str, tmp_path: Path) -> None:
    moved, _, backbone = changed(recipe_of(task, freeze_backbone=True), tmp_path / "run")
    assert moved
    assert not {name for name in moved if name.startswith(backbone)}


def test_frozen_batch_norm_is_the_backbones_alone(recipe_of: Make, tmp_path: Path) -> None:
    moved, still, backbone = changed(recipe_of("segmentation", freeze_batch_norm=True), tmp_path / "run")
    assert not {name for name in moved if name.startswith(backbone) and is_statistic(name)}
    assert {name for name in moved if not name.startswith(backbone) and is_statistic(name)}
    assert f"{backbone}model.stem.norm1.weight" in still
    assert f"{backbone}model.stem.conv1.weight" in moved


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_recomputing_changes_no_loss(recipe_of: Make, task: str) -> None:
    found = []
    for recompute in (False, True):
        recipe = recipe_of(task, gradient_checkpointing=recompute)
        made: Task = TASKS[task](recipe, seed=0)
        seed_everything("weights", 0)
        network = made.build().train()
        batch = made.collate([made.training_images[Place(index, 0, index)] for index in range(4)])
        seed_everything("update", 0)
        losses = made.losses(network(*made.inputs(batch)), batch)
        sum(losses.values()).backward()
        stem = next(parameter for name, parameter in network.named_parameters() if name.endswith("stem.conv1.weight"))
        found.append((losses, stem.grad))
    (plain, gradient), (again, recomputed) = found
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value)
    torch.testing.assert_close(recomputed, gradient, rtol=1e-4, atol=1e-6)


SWIN = {"embed_dim": 12, "depths": [1, 1, 2, 2], "num_heads": [1, 1, 2, 2]}


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": "fit"},
        {"windows": "pad"},
        {"model": "swin_tiny_patch4_window7_224", "model_options": SWIN},
    ],
    ids=["fit", "pad", "swin"],
)
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_what_is_loaded_is_what_was_trained(
    recipe_of: Make, task: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Windows follow from the training's size, which the file must tell: weights alone would fit others too."""
    sizes = {"detection": {"max_size": 320, "min_sizes": [224]}, "segmentation": {"crop_size": [224, 320]}}
    recipe = recipe_of(task, **sizes[task], **changes)
    start(recipe, tmp_path / "run")
    trained: DenseNetwork = TASKS[task](recipe, seed=0).build().eval()
    trained.load_state_dict(load_file(tmp_path / "run" / "best.safetensors"))
    loaded = (load_detector if task == "detection" else load_segmenter)(tmp_path / "run").model
    with torch.no_grad():
        x = torch.randn(1, 3, 224, 320)
        for found, expected in zip(loaded.feature_backbone(x), trained.feature_backbone(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_fitted_windows_are_others(recipe_of: Make) -> None:
    """The test above could not fail, were they the same."""
    maps = []
    for windows in ("pad", "fit"):
        seed_everything("weights", 0)
        recipe = recipe_of("segmentation", crop_size=[224, 320], windows=windows)
        network = TASKS["segmentation"](recipe, seed=0).build().eval()
        with torch.no_grad():
            maps.append(network.feature_backbone(torch.ones(1, 3, 224, 320))[2])
    assert not torch.allclose(*maps)


def test_upernet_wants_two_images(recipe_of: Make) -> None:
    with pytest.raises(ValueError, match="batch_size=1"):
        recipe_of("segmentation", batch_size=1)
    assert recipe_of("segmentation", batch_size=1, head_options={**UPERNET, "pool_scales": [2, 3]})


def test_a_segmenter_does_not_start_from_a_detectors_weights(recipe_of: Make, tmp_path: Path) -> None:
    start(recipe_of("detection"), tmp_path / "detector")
    weights = str(tmp_path / "detector" / "last.safetensors")
    with pytest.raises(ValueError, match="trained for detection, not for segmentation"):
        start(recipe_of("segmentation", weights=weights), tmp_path / "segmenter")
    assert not (tmp_path / "segmenter").exists()
