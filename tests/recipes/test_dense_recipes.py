"""Recipes of detection and segmentation: what the training specification says, written here a second time."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

import openfastervit_cli
from openfastervit.training.optimisation import rate_factor
from openfastervit.training.recipe import DetectionRecipe, Recipe, SegmentationRecipe, read_recipe
from tests.conftest import REPOSITORY
from tests.recipes.headers import command, header

FOLDER = REPOSITORY / "recipes"
KINDS: dict[str, type[Recipe]] = {"detection": DetectionRecipe, "segmentation": SegmentationRecipe}
COMMANDS = {"detection": "detect", "segmentation": "segment"}
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if "task: " in path.read_text(encoding="utf-8"))
PUBLISHED = {
    "fastervit_2_coco": ("52.1", "45.2", "45.4"),
    "fastervit_3_coco": ("52.4", "45.4"),
    "fastervit_4_coco": ("52.9", "45.8"),
    "fastervit_2_ade20k": ("47.2", "48.4"),
    "fastervit_3_ade20k": ("48.7", "49.7"),
    "fastervit_4_ade20k": ("49.1", "50.3"),
}
DROP_PATH = {"2": 0.2, "3": 0.3, "4": 0.3}
PROCESSES = 8


def of(path: Path) -> Any:
    return read_recipe(path, KINDS[yaml.safe_load(path.read_text(encoding="utf-8"))["task"]])


def test_the_published_ones_are_there() -> None:
    assert {path.stem for path in RECIPES} >= set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_the_specification_says(name: str) -> None:
    recipe = of(FOLDER / f"{name}.yaml")
    variant = name.split("_")[1]
    assert (recipe.model, recipe.drop_path) == (f"fastervit_{variant}", DROP_PATH[variant])
    assert recipe.optimizer == "adamw"
    assert rate_factor(recipe, 16) == 1
    assert recipe.batch_size * PROCESSES == 16
    if recipe.task == "detection":
        assert (recipe.lr, recipe.weight_decay, recipe.head) == (1e-4, 0.05, "cascade-mask-rcnn")
        assert (min(recipe.min_sizes), max(recipe.min_sizes), recipe.max_size) == (480, 800, 1333)
        assert (recipe.epochs, recipe.schedule, recipe.milestones) == (36, "multistep", [27, 33])
    else:
        assert (recipe.lr, recipe.weight_decay, recipe.head) == (6e-5, 0.01, "upernet")
        assert recipe.crop_size == [512, 512]
        assert recipe.epochs * (20210 // 16) == pytest.approx(160_000, rel=0.01)
    told = header(FOLDER / f"{name}.yaml")
    for figure in PUBLISHED[name]:
        assert figure in told["Published"]
    assert "not measured here" in told["Measured"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_header_names_a_command_that_exists(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(FOLDER)
    words = command(path)
    assert f"recipes/{path.name}" in words
    if words[0] == "torchrun":
        launch = get_args_parser().parse_args(words[1:])
        assert launch.module
        assert launch.training_script == "openfastervit_cli"
        assert int(launch.nproc_per_node) == PROCESSES
        words = launch.training_script_args
    else:
        assert words.pop(0) == "fastervit"
    stands = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert words[:2] == [COMMANDS[stands["task"]], "train"]
    assert openfastervit_cli.main([*words, "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert {name: printed[name] for name in stands} == stands
    assert printed["data"] == words[words.index("--data") + 1]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_header_tells_what_is_to_be_known(path: Path) -> None:
    told = header(path)
    assert set(told) >= {"", "Command", "Hardware", "Published", "Measured"}
    assert all(told.values())
