"""``fastervit finetune``: what it starts from, what it keeps of it, and that small data sets work."""

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from openfastervit import create_model, save_checkpoint
from openfastervit.inference import load_classifier
from openfastervit.models.fastervit import VARIANTS
from openfastervit.tasks.classification import build_network
from openfastervit.training.recipe import FinetuneRecipe, make_recipe
from tests.cli.conftest import Run
from tests.data.trees import write_tree
from tests.networks import GLOBAL, TINY, tiny

OPTIONS = {"dim": 8, "stem_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 4]}
QUICK = ("--workers", 0, "--device", "cpu", "--img-size", 32, "--epochs", 1)
FITS = ("--batch-size", 4)
STILL = ("--lr", 1e-9, "--min-lr", 0, "--warmup-lr", 0)
SMALL = ("--model-options", str(OPTIONS))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "photos", {"ant": 5, "bee": 4, "cat": 4})


def write_weights(path: Path, classes: int | list[str], name: str = "fastervit_0") -> Path:
    count = classes if isinstance(classes, int) else len(classes)
    network = tiny(name, **{**OPTIONS, "num_classes": count})
    return save_checkpoint(network, path, metadata=None if isinstance(classes, int) else {"classes": classes})


def first_weights(name: str, weights: Path, classes: list[str], **options: Any) -> dict[str, torch.Tensor]:
    recipe = make_recipe({"model": name, "weights": str(weights), "model_options": options}, FinetuneRecipe)
    return build_network(recipe, len(classes), classes).state_dict()


def test_a_data_set_smaller_than_the_batch(fastervit: Run, data: Path, tmp_path: Path):
    run = tmp_path / "run"
    outcome = fastervit("finetune", "--no-pretrained", "--data", data, "--out", run, *SMALL, *QUICK)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("best top-1 ")
    assert "fastervit: warning: batch_size 32 is lowered to 10, for 10 images" in outcome.err
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (recipe["batch_size"], recipe["layer_decay"]) == (10, 0.75)
    classifier = load_classifier(run / "best.safetensors")
    assert classifier.classes == ("ant", "bee", "cat")
    assert fastervit("finetune", "--resume", run).code == 0
    assert fastervit("evaluate", "--checkpoint", run, "--workers", 0).code == 0


def test_a_batch_that_fits_stays(data: Path):
    recipe = make_recipe({}, FinetuneRecipe)
    assert recipe.for_data(64, 2) is recipe
    assert recipe.for_data(63, 2).batch_size == 31
    assert make_recipe({"mixup": 0.5, "accumulate": 2}, FinetuneRecipe).for_data(63, 1).batch_size == 30


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("classes", [1000, 21841])
def test_a_classifier_of_other_classes_is_started_anew(
    fastervit: Run, data: Path, tmp_path: Path, classes: int, suffix: str
):
    weights = write_weights(tmp_path / f"weights{suffix}", classes)
    run = tmp_path / "run"
    outcome = fastervit("finetune", "--weights", weights, "--data", data, "--out", run, *SMALL, *QUICK, *STILL)
    assert outcome.code == 0, outcome.err
    says = f"{weights}: its classifier has {classes} classes, the data 3; a new classifier of 3 classes is started"
    assert f"fastervit: warning: {says}" in outcome.err
    before = tiny(**{**OPTIONS, "num_classes": classes}).state_dict()
    after = load_file(run / "last.safetensors")
    assert after["head.fc.weight"].shape == (3, 64)
    kept = [name for name in after if "running" not in name and "batches" not in name and "head" not in name]
    assert len(kept) > 50
    for name in kept:
        torch.testing.assert_close(after[name], before[name], atol=1e-4, rtol=1e-3, msg=name)


def test_a_classifier_of_the_same_classes_is_kept(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    names = ["ant", "bee", "cat"]
    told = write_weights(tmp_path / "told.safetensors", names)
    untold = write_weights(tmp_path / "untold.pth", 3)
    before = tiny(**{**OPTIONS, "num_classes": 3}).state_dict()
    for weights in (told, untold):
        after = first_weights("fastervit_0", weights, names, **OPTIONS)
        assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not recwarn.list


@pytest.mark.parametrize("classes", [["ant", "bee", "dog"], ["bee", "ant", "cat"]])
def test_as_many_classes_need_not_be_the_same(tmp_path: Path, classes: list[str]):
    weights = write_weights(tmp_path / "told.safetensors", ["ant", "bee", "cat"])
    with pytest.warns(UserWarning, match="for other classes, or in another order; a new classifier of 3"):
        after = first_weights("fastervit_0", weights, classes, **OPTIONS)
    before = tiny(**{**OPTIONS, "num_classes": 3}).state_dict()
    same = {name for name, value in before.items() if torch.equal(after[name], value)}
    assert set(before) - same == {"head.fc.weight", "head.fc.bias"}


def test_timms_networks_start_from_weights_too(tmp_path: Path):
    told = timm.create_model("resnet10t", num_classes=7)
    torch.save({"state_dict": told.state_dict()}, tmp_path / "resnet.pth")
    with pytest.warns(UserWarning, match="has 7 classes, the data 3"):
        after = first_weights("resnet10t", tmp_path / "resnet.pth", ["ant", "bee", "cat"])
    for name, value in told.state_dict().items():
        assert name.startswith("fc.") or torch.equal(after[name], value)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model", "fastervit_3", *SMALL], ["fit this network", "gamma"]),
        (["--model", "fastervit_0", "--model-options", str({**OPTIONS, "dim": 16})], ["has shape", "network needs"]),
        (["--model", "fastervit_0"], ["weights.safetensors", "the file was saved from a network with", "dim=8"]),
        (["--model", "resnet10t"], ["weights.safetensors", "does not fit this ResNet"]),
        ([*SMALL, "--pretrained"], ["pretrained and weights"]),
    ],
)
def test_weights_of_another_network(fails, data: Path, tmp_path: Path, args: list, says: list[str]):
    weights = write_weights(tmp_path / "weights.safetensors", ["ant", "bee", "cat"])
    outcome = ("finetune", "--weights", weights, "--data", data, "--out", tmp_path / "run", *QUICK, *FITS, *args)
    fails(*outcome, says=says)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["fastervit_0", "resnet10t"])
def test_without_a_network_the_error_names_weights(
    fails, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("openfastervit.models.pretrained._noticed", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    says = ["--weights PATH", "--no-pretrained"]
    fails("finetune", "--model", model, "--data", data, "--out", tmp_path / "run", *QUICK, *FITS, says=says)
    assert not (tmp_path / "run").exists()


def test_a_frozen_backbone(fastervit: Run, data: Path, tmp_path: Path):
    weights = write_weights(tmp_path / "weights.pth", 1000)
    run = tmp_path / "run"
    args = (
        "--weights",
        weights,
        "--freeze-backbone",
        "--ema-decay",
        "none",
        "--lr",
        1,
        "--lr-batch",
        "none",
        "--warmup-epochs",
        0,
    )
    outcome = fastervit("finetune", *args, "--data", data, "--out", run, *SMALL, *QUICK)
    assert outcome.code == 0, outcome.err
    after = load_file(run / "last.safetensors")
    for name, value in tiny(**{**OPTIONS, "num_classes": 1000}).state_dict().items():
        assert name.startswith("head.") or torch.equal(after[name], value), name
    assert after["head.fc.weight"].abs().max() > 0.09  # as no first weight is: it has learned


def test_defaults_follow_from_what_is_asked():
    assert make_recipe({"weights": __file__}, FinetuneRecipe).pretrained is False
    frozen = make_recipe({"freeze_backbone": True}, FinetuneRecipe)
    assert frozen.layer_decay is None
    assert frozen.lr > make_recipe({}, FinetuneRecipe).lr
    assert make_recipe({"freeze_backbone": True, "lr": 1e-3}, FinetuneRecipe).lr == 1e-3
    assert make_recipe({"epochs": 10}, FinetuneRecipe).warmup_epochs == pytest.approx(1)
    assert make_recipe({"epochs": 100}, FinetuneRecipe).warmup_epochs == 3
    assert make_recipe({"epochs": 10, "warmup_epochs": 5}, FinetuneRecipe).warmup_epochs == 5


# --- From ImageNet-21K, at each resolution

WINDOWS = {224: (14, 7), 384: (24, 12), 512: (32, 16), 768: (48, 24)}
"""Of stages 2 and 3, from the specification."""


@pytest.mark.parametrize("size", WINDOWS)
def test_attention_stays_global_at_every_resolution(tmp_path: Path, size: int):
    """The 21K network of 224 x 224 gets the windows that the released one of that size has."""
    weights = save_checkpoint(tiny(GLOBAL, **{**TINY, "num_classes": 21841}), tmp_path / "in21k.pth")
    options = {name: value for name, value in TINY.items() if name != "num_classes"}
    asked = {"model": GLOBAL, "weights": str(weights), "img_size": size, "model_options": options}
    with pytest.warns(UserWarning, match="has 21841 classes, the data 5"):
        network: Any = build_network(make_recipe(asked, FinetuneRecipe), 5)
    attention = [network.stages[stage].attention for stage in (2, 3)]
    assert [stage.window_size for stage in attention] == [(side, side) for side in WINDOWS[size]]
    released = next(name for name in VARIANTS if name.endswith(f"_{size}"))
    twin = create_model(released, **options, num_classes=5).eval()
    twin.load_state_dict(network.state_dict())
    with torch.no_grad():
        images = torch.randn(1, 3, size, size)
        torch.testing.assert_close(network.eval()(images), twin(images))


def test_a_resolution_that_is_not_square_is_told_in_the_file(fastervit: Run, data: Path, tmp_path: Path):
    run = tmp_path / "run"
    size = ("--workers", 0, "--device", "cpu", "--img-size", 64, 96, "--epochs", 1)
    outcome = fastervit("finetune", "--no-pretrained", "--model", GLOBAL, "--data", data, "--out", run, *SMALL, *size)
    assert outcome.code == 0, outcome.err
    network: Any = load_classifier(run / "best.safetensors").model
    assert [network.stages[stage].attention.window_size for stage in (2, 3)] == [(4, 6), (2, 3)]
    assert network.img_size == (64, 96)


@pytest.mark.slow
def test_a_full_size_21k_network_starts_from_its_weights(tmp_path: Path):
    torch.manual_seed(0)
    weights = save_checkpoint(create_model(GLOBAL, num_classes=21841), tmp_path / "in21k.safetensors")
    asked = {"model": "fastervit_4_w24_384", "weights": str(weights)}
    with pytest.warns(UserWarning, match="has 21841 classes, the data 1000"):
        network: Any = build_network(make_recipe(asked, FinetuneRecipe), 1000)
    saved = load_file(weights)
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items() if "head.fc" not in name)
    assert sum(parameter.numel() for parameter in network.parameters()) == 271_944_224


@pytest.mark.skipif(
    not Path(os.environ.get("OPENFASTERVIT_SAMPLE_DATA", ""), "imagenette-128").is_dir(),
    reason="OPENFASTERVIT_SAMPLE_DATA names no folder with imagenette-128",
)
def test_photographs(fastervit: Run, tmp_path: Path):
    """Three classes, 20 photographs each: what a person tries first."""
    source = Path(os.environ["OPENFASTERVIT_SAMPLE_DATA"], "imagenette-128", "train")
    for wnid in ("n01440764", "n02102040", "n02979186"):
        (tmp_path / "photos" / wnid).mkdir(parents=True)
        for photo in sorted((source / wnid).iterdir())[:20]:
            shutil.copy(photo, tmp_path / "photos" / wnid)
    settings = ("--workers", 0, "--device", "cpu", "--img-size", 64, "--epochs", 3, "--no-pretrained", "--lr", 1e-2)
    run = tmp_path / "run"
    outcome = fastervit("finetune", "--data", tmp_path / "photos", "--out", run, *SMALL, *settings)
    assert outcome.code == 0, outcome.err
    rows = (run / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4
    losses = [float(row.split(",")[rows[0].split(",").index("train_loss")]) for row in rows[1:]]
    assert losses[-1] < losses[0]
