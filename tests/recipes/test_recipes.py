"""The recipes: what they say is what the training specification says, and what they ask for can be had.

The expected values are written here a second time, from the specification and not from the recipes.
"""

import csv
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser

import openfastervit_cli
from openfastervit.layers.drop_path import DropPath
from openfastervit.models import list_models
from openfastervit.tasks.classification import build_network, preparation
from openfastervit.training.optimisation import rate_factor
from openfastervit.training.recipe import ClassificationRecipe, read_recipe
from tests.conftest import REPOSITORY
from tests.networks import TINY
from tests.pocket import picture
from tests.recipes.headers import command, header

FOLDER = REPOSITORY / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if "task: " not in path.read_text(encoding="utf-8"))
"""Those of classifiers; those of other tasks name their task."""

PROCESSES = 32
GLOBAL_BATCH = 4096

FROM_SCRATCH = tuple(f"fastervit_{number}" for number in range(7))


class Row(NamedTuple):
    """A row of the specification's table."""

    optimizer: str
    weight_decay: float
    warmup_epochs: float
    mesa: float
    drop_path: float
    elsewhere: tuple[str, ...]
    top1: str
    top5: str
    parameters: int


TABLE = {
    "fastervit_0": Row("adamw", 0.05, 20, 0.1, 0.2, ("0.005", "0 and 0.25"), "82.1", "95.9", 31_404_840),
    "fastervit_1": Row("adamw", 0.05, 20, 0.2, 0.2, ("0.005", "0.5"), "83.2", "96.5", 53_366_696),
    "fastervit_2": Row("adamw", 0.05, 20, 0.5, 0.2, ("0.005", "weight 1"), "84.2", "96.8", 75_923_816),
    "fastervit_3": Row("adamw", 0.075, 35, 0.5, 0.3, ("0.005", "weight 1", "30 %"), "84.9", "97.2", 159_547_944),
    "fastervit_4": Row("lamb", 0.12, 20, 5, 0.3, ("MESA weight 4",), "85.4", "97.3", 365_555_712),
    "fastervit_5": Row("lamb", 0.12, 20, 5, 0.3, (), "85.6", "97.4", 957_520_552),
    "fastervit_6": Row("lamb", 0.12, 20, 5, 0.5, ("0.15",), "85.8", "97.4", 1_360_328_872),
}

FINE_TUNED = {  # image side: windows of the attention stages, top-1, share of the squashed image that is looked at
    224: (14, 7, "86.6", 0.95),
    384: (24, 12, "87.6", 1.0),
    512: (32, 16, "87.8", 1.0),
    768: (48, 24, "87.9", 0.93),
}
GLOBAL_PARAMETERS = 271_944_224

AUGMENTATION = {
    "label_smoothing": 0.1,
    "bce": False,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "mixup_switch_prob": 0.5,
    "mixup_prob": 1.0,
    "mixup_mode": "batch",
    "random_erasing": 0.25,
    "erasing_mode": "pixel",
    "crop_scale": [0.08, 1.0],
    "crop_ratio": [3 / 4, 4 / 3],
    "hflip": 0.5,
    "vflip": 0.0,
    "repeated_augmentation": 1,
}
COMMON = {
    **AUGMENTATION,
    "schedule": "cosine",
    "lr_batch": GLOBAL_BATCH,
    "lr_scaling": "linear",
    "min_lr": 5e-6,
    "warmup_lr": 1e-6,
    "clip_grad": 5.0,
    "ema_decay": 0.9998,
    "ema_warmup": False,
    "precision": "bf16",
    "channels_last": True,
    "img_size": None,
    "model_options": {},
    "pretrained": False,
    "layer_decay": None,
}


def of(name: str) -> ClassificationRecipe:
    return read_recipe(FOLDER / f"{name}.yaml", ClassificationRecipe)


def holds(recipe: ClassificationRecipe, expected: dict[str, Any]) -> None:
    found = {name: getattr(recipe, name) for name in expected}
    assert found == expected


def fine_tuning(side: int) -> str:
    return f"fastervit_4_w{FINE_TUNED[side][0]}_{side}"


def test_every_network_has_its_recipes() -> None:
    expected = {f"{name}_in1k" for name in FROM_SCRATCH}
    expected |= {f"{fine_tuning(side)}_in21k_ft_in1k" for side in FINE_TUNED}
    expected |= {"fastervit_4_w14_224_in21k", "imagenette_pocket", "imagenette_fastervit_0"}
    assert {path.stem for path in RECIPES} == expected
    assert {of(path.stem).model for path in RECIPES} == set(list_models())


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_imagenet_1k(name: str) -> None:
    recipe, row = of(f"{name}_in1k"), TABLE[name]
    holds(
        recipe,
        {
            **COMMON,
            "model": name,
            "epochs": 300,
            "cooldown_epochs": 10,
            "lr": 5e-3,
            "mesa_start": 0.25,
            **{key: value for key, value in row._asdict().items() if hasattr(recipe, key)},
        },
    )
    assert (recipe.batch_size, recipe.accumulate) == (128, 1)
    assert rate_factor(recipe, recipe.batch_size * PROCESSES) == 1
    told = header(FOLDER / f"{name}_in1k.yaml")
    assert f"top-1 {row.top1} %, top-5 {row.top5} %" in told["Published"]
    for value in row.elsewhere:
        assert value in told["Elsewhere"]
    assert ("LAMB" in told["Elsewhere"]) == (row.optimizer != "lamb")  # the paper's text says it of all


def test_imagenet_21k() -> None:
    recipe = of("fastervit_4_w14_224_in21k")
    holds(
        recipe,
        {**COMMON, "epochs": 90, "cooldown_epochs": 0, "lr": 4e-3, "drop_path": 0.42, "model": "fastervit_4_w14_224"},
    )
    assert recipe.batch_size * recipe.accumulate * PROCESSES == GLOBAL_BATCH


@pytest.mark.parametrize("side", FINE_TUNED)
def test_fine_tuning(side: int) -> None:
    name = fine_tuning(side)
    recipe = of(f"{name}_in21k_ft_in1k")
    holds(recipe, {**COMMON, "epochs": 60, "cooldown_epochs": 0, "lr": 7e-5, "drop_path": 0.42, "model": name})
    assert recipe.batch_size * recipe.accumulate * PROCESSES == GLOBAL_BATCH
    third, fourth, top1, crop = FINE_TUNED[side]
    with torch.device("meta"):
        network: Any = build_network(recipe, 1000)
    assert [network.stages[stage].attention.window_size for stage in (2, 3)] == [(third, third), (fourth, fourth)]
    prepared = preparation(recipe)
    assert prepared["input_size"] == (3, side, side)
    assert (prepared["crop_mode"], prepared["crop_pct"]) == ("squash", crop)
    assert f"top-1 {top1} %" in header(FOLDER / f"{name}_in21k_ft_in1k.yaml")["Published"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_lamb_is_clipped_once(path: Path) -> None:
    """timm's LAMB would clip at norm 1 before the loop's 5 could matter."""
    recipe = of(path.stem)
    assert recipe.optimizer_options == ({"max_grad_norm": None} if recipe.optimizer == "lamb" else {})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_network_builds_with_the_drop_path(path: Path) -> None:
    recipe = of(path.stem)
    classes = 10 if "imagenette" in path.stem else 1000
    with torch.device("meta"):
        network = build_network(recipe, classes)
    rates = [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]
    assert max(rates, default=0.0) == pytest.approx(recipe.drop_path)
    if classes == 1000:
        parameters = sum(parameter.numel() for parameter in network.parameters())
        assert parameters == (TABLE[recipe.model].parameters if recipe.model in TABLE else GLOBAL_PARAMETERS)


# --- Headers


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_header_tells_what_is_to_be_known(path: Path) -> None:
    told = header(path)
    assert set(told) >= {"", "Command", "Hardware", "Published", "Measured"}
    assert all(told.values())
    if "in1k" in path.stem or "in21k" in path.stem:
        assert "not measured here" in told["Measured"]
        assert "Elsewhere" in told
    for document in re.findall(r"docs/[\w-]+\.md", " ".join(told.values())):
        assert (REPOSITORY / document).is_file(), document


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_header_names_a_command_that_exists(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run as it stands, but for --print-config; torchrun's own options go through torchrun's parser."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(FOLDER)
    words = command(path)
    assert f"recipes/{path.name}" in words
    if words[0] == "torchrun":
        launch = get_args_parser().parse_args(words[1:])
        assert launch.module
        assert launch.training_script == "openfastervit_cli"
        assert int(launch.nnodes) * int(launch.nproc_per_node) == PROCESSES
        words = launch.training_script_args
    else:
        assert words.pop(0) == "fastervit"
    if "--weights" in words:
        weights = tmp_path / words[words.index("--weights") + 1]
        weights.parent.mkdir(parents=True)
        weights.touch()
    assert openfastervit_cli.main([*words, "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed.pop("task") == "classification"
    stands = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {name: printed[name] for name in stands} == stands
    assert printed["data"] == words[words.index("--data") + 1]


# --- At work


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of synthetic pictures."""
    folder = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 2), ("val", 1)):
        for number, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for image in range(count):
                picture(10 * number + image).save(folder / split / name / f"{image}.jpg")
    return folder


SHORT = [
    *("--img-size", "64", "--batch-size", "4", "--accumulate", "1", "--workers", "0", "--device", "cpu"),
    *("--epochs", "1", "--cooldown-epochs", "0", "--warmup-epochs", "0", "--mesa-start", "0", "--val-fraction", "0.5"),
]
SMALL = {name: value for name, value in TINY.items() if name != "num_classes"}


def train(name: str, photos: Path, out: Path, *more: str) -> dict[str, str]:
    """Train by a recipe, for one update, and return its row of figures."""
    words = ["train", "--recipe", str(FOLDER / f"{name}.yaml"), "--data", str(photos), "--out", str(out)]
    assert openfastervit_cli.main([*words, *SHORT, *more]) == 0
    with (out / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["step"] == "1"
    assert 0 < float(row["train_loss"]) < 1000
    assert (out / "best.safetensors").is_file()
    return row


def test_one_update_of_fastervit_0(photos: Path, tmp_path: Path) -> None:
    """At its full width. Its average still has the first weights, so MESA's loss is that of drop path alone."""
    row = train("fastervit_0_in1k", photos, tmp_path / "run")
    assert float(row["train_mesa"]) > 0
    assert float(row["train_cross_entropy"]) > 0


@pytest.mark.parametrize("name", ["fastervit_5_in1k", "imagenette_pocket"])
def test_one_update_of_other_optimisers(name: str, photos: Path, tmp_path: Path) -> None:
    train(name, photos, tmp_path / "run", "--model-options", json.dumps(SMALL))


def test_from_21k_to_other_classes_at_another_size(photos: Path, tmp_path: Path) -> None:
    """The pre-trained run's file fits the fine-tuning's network, whose windows are others."""
    options = ["--model-options", json.dumps(SMALL)]
    train("fastervit_4_w14_224_in21k", photos, tmp_path / "in21k", *options)
    (photos / "train" / "eel").mkdir()
    for split in ("train", "val"):
        (photos / split / "eel").mkdir(exist_ok=True)
        picture(20).save(photos / split / "eel" / "0.jpg")
    weights = tmp_path / "in21k" / "best.safetensors"
    train("fastervit_4_w24_384_in21k_ft_in1k", photos, tmp_path / "in1k", *options, "--weights", str(weights))
    before, after = load_file(weights), load_file(tmp_path / "in1k" / "best.safetensors")
    assert {name for name in before if before[name].shape != after[name].shape} == {"head.fc.weight", "head.fc.bias"}
    kept = [name for name in before if not name.startswith("head.fc") and not name.endswith("num_batches_tracked")]
    # One update away, and that averaged: weights drawn anew would be somewhere else.
    assert max((after[name] - before[name]).abs().max() for name in kept) < 0.01
