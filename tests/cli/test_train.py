"""``fastervit train`` as a command line: which setting wins, what is refused, what its help and its recipe say."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from openfastervit.training.recipe import ClassificationRecipe, FinetuneRecipe, make_recipe
from openfastervit.training.run import resume, start
from tests.cli.conftest import Run
from tests.data.trees import write_tree

SMALL = {"dim": 8, "stem_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 4]}


@pytest.fixture
def resolved(fastervit: Run):
    """The settings that ``--print-config`` shows."""

    def run(*args: object, command: str = "train") -> dict[str, Any]:
        outcome = fastervit(command, *args, "--print-config")
        assert (outcome.code, outcome.err) == (0, "")
        found: dict[str, Any] = yaml.safe_load(outcome.out)
        return found

    return run


def write(path: Path, **settings: Any) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize(("command", "kind"), [("train", ClassificationRecipe), ("finetune", FinetuneRecipe)])
def test_the_printed_recipe_resolves_to_itself(fastervit: Run, tmp_path: Path, command: str, kind: type):
    asked = ["--data", "photos", "--lr", "1e-3", "--img-size", 96, 128, "--model-options", str(SMALL), "--lr-batch", 64]
    printed = fastervit(command, *asked, "--print-config").out
    (tmp_path / "printed.yaml").write_text(printed)
    assert fastervit(command, "--recipe", tmp_path / "printed.yaml", "--print-config").out == printed
    recipe = make_recipe({**yaml.safe_load(printed)}, kind)
    assert (recipe.lr, recipe.img_size, recipe.model_options, recipe.lr_batch) == (1e-3, [96, 128], SMALL, 64)
    assert recipe.to_yaml() == printed


def test_without_options_it_is_the_library_s_defaults(resolved):
    assert resolved() == {"task": "classification", **vars(ClassificationRecipe())}
    assert resolved(command="finetune") == {"task": "classification", **vars(FinetuneRecipe())}


@pytest.mark.parametrize("order", [1, -1])
def test_the_command_line_wins_wherever_the_recipe_stands(resolved, tmp_path: Path, order: int):
    recipe = write(tmp_path / "r.yaml", epochs=7, lr=0.5, channels_last=True, ema_decay=0.9, seed=3, img_size=128)
    options = ["--epochs=300", "--no-channels-last", "--ema_decay", "none", "--recipe", str(recipe)]
    if order < 0:
        options = ["--recipe", str(recipe), *options[:-2]]
    found = resolved(*options)
    # 300 epochs, no channels-last and no average are the defaults too: asked for, they win all the same.
    names = ("epochs", "channels_last", "ema_decay", "lr", "seed", "img_size")
    assert [found[name] for name in names] == [300, False, None, 0.5, 3, [128]]


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        (["--img-size", 128], "img_size", [128]),
        (["--img-size", 96, 128], "img_size", [96, 128]),
        (["--channels-last"], "channels_last", True),
        (["--channels-last", "--no-channels-last"], "channels_last", False),
        (["--model-options", "{depths: [1, 1, 1, 1]}"], "model_options", {"depths": [1, 1, 1, 1]}),
        (["--model-options.dim", 8], "model_options", {"dim": 8}),
        (["--model-options.dim=8"], "model_options", {"dim": 8}),
        (["--model_options.stem_dim", 8], "model_options", {"stem_dim": 8}),
        (["--model-options", "{dim: 16}", "--model-options.stem_dim", 8], "model_options", {"dim": 16, "stem_dim": 8}),
        (["--optimizer-options.betas", "[0.9, 0.95]"], "optimizer_options", {"betas": [0.9, 0.95]}),
        (["--data=--epochs"], "data", "--epochs"),
        (["--lr-batch", "none"], "lr_batch", None),
        (["--deterministic"], "deterministic", True),
        (["--mean", 0.5, 0.5, 0.5], "mean", [0.5, 0.5, 0.5]),
    ],
)
def test_how_values_are_written(resolved, args: list, name: str, value: Any):
    found = resolved(*args)
    assert found == {"task": "classification", **vars(ClassificationRecipe()), name: value}


def test_an_entry_of_options_leaves_the_recipe_s_others(resolved, tmp_path: Path):
    recipe = write(tmp_path / "r.yaml", model_options=SMALL)
    assert resolved("--recipe", recipe, "--model-options.dim", 16)["model_options"] == {**SMALL, "dim": 16}
    assert resolved("--recipe", recipe, "--model-options", "{dim: 16}")["model_options"] == {"dim": 16}


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--epoch", 3], 2, ["unknown option --epoch", "did you mean --epochs?"]),
        (["--config", "r.yaml"], 2, ["unknown option --config"]),
        (["--lr", "fast"], 2, ["--lr must be a number, not 'fast'"]),
        (["--lr-batch", "x"], 2, ["--lr-batch must be a whole number or none, not 'x'"]),
        (["--batch-size", "1.5"], 2, ["--batch-size must be a whole number, not '1.5'"]),
        (["--img-size", "big"], 2, ["--img-size must be a whole number, not 'big'"]),
        (["--precision", "fp61"], 2, ["--precision cannot be 'fp61'", "did you mean fp16?"]),
        (["--model-options", "{dim: 8"], 2, ["--model-options must be names and values"]),
        (["photos"], 2, ["photos"]),
        ([], 1, ["data is not given", "--data photos"]),
        (["--data", "nowhere"], 1, ["no folder at nowhere"]),
        (["--data", "d", "--mesa", 1], 1, ["mesa=1.0", "ema_decay"]),
        (["--data", "d", "--bce-threshold", 0.2], 1, ["bce_threshold=0.2", "bce"]),
        (["--data", "d", "--bce", "--bce-threshold", 3], 1, ["bce_threshold=3.0", "below 1"]),
        (["--data", "d", "--model-options", "{num_classes: 9}"], 1, ["num_classes", "follows from the data"]),
        (["--data", "d", "--model-options", "{drop_path_rate: 0.1}"], 1, ["drop_path_rate", "setting drop_path"]),
        (["--data", "d", "--auto-augment", "junk"], 1, ["auto_augment='junk'", "rand-m9"]),
        (["--data", "d", "--auto-augment", "rand-q9"], 1, ["auto_augment='rand-q9'", "rand-m9"]),
        (["--data", "d", "--windows", "fit"], 1, ["windows=fit", "img_size"]),
        (["--data", "d", "--pretrained", "--weights", __file__], 1, ["pretrained and weights", "one of them"]),
        (["--data", "d", "--freeze-backbone", "--layer-decay", 0.5], 1, ["layer_decay", "freeze_backbone"]),
        (["--data", "d", "--mixup", 0.8, "--batch-size", 3], 1, ["batch_size=3", "even"]),
        (["--data", "d", "--warmup-epochs", 300], 1, ["warmup_epochs=300", "lower it"]),
        (["--data", "d", "--optimizer", "adamww"], 1, ["optimizer='adamww'", "did you mean adamw?"]),
        (["--data", "d", "--weights", "none.pth"], 1, ["weights=none.pth", "no such file"]),
        (["--data", "d", "--model", "fastervit_9"], 1, ["unknown model 'fastervit_9'", "fastervit_"]),
        (["--recipe", "nowhere.yaml"], 1, ["no recipe at nowhere.yaml"]),
        (["--resume", "nowhere"], 1, ["there is no run", "--out"]),
        (["--resume", "nowhere", "--print-config"], 1, ["there is no run"]),
        (["--resume", "nowhere", "--recipe", "r.yaml"], 1, ["--recipe and --resume contradict"]),
        (["--resume", "nowhere", "--epochs", 3], 1, ["epochs cannot change"]),
    ],
)
def test_wrong_settings_name_the_mend(
    fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list, code: int, says: list[str]
):
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "d", {"ant": 4, "bee": 4})
    fails("train", *args, code=code, says=says)
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]  # no folder of a run


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch: 3", ["unknown setting 'epoch'", "did you mean epochs?"]),
        ("lr: fast", ["lr='fast' must be a number"]),
        ("lr: null", ["lr=None must be a number"]),
        ("epochs: 1.5", ["epochs=1.5 must be a whole number"]),
        ("bce: 3", ["bce=3 must be true or false"]),
        ("img_size: [a]", ["img_size=['a'] must be a list of whole numbers, or null"]),
        ("precision: fp64", ["precision='fp64' must be one of fp32, bf16, fp16"]),
        ("model_options: 8", ["model_options=8 must be names and values"]),
        ("task: detection", ["task='detection'"]),
        ("- epochs", ["holds no settings"]),
        ("a: [", ["is not YAML"]),
        ("mesa: 1", ["mesa=1", "ema_decay"]),
    ],
)
def test_wrong_recipes_name_the_file_and_the_mend(fails, tmp_path: Path, text: str, says: list[str]):
    (tmp_path / "wrong.yaml").write_text(text)
    fails("train", "--recipe", tmp_path / "wrong.yaml", "--print-config", says=["wrong.yaml", *says])


def test_numbers_as_people_write_them(resolved, tmp_path: Path):
    """YAML takes 5e-3 for text."""
    (tmp_path / "r.yaml").write_text("lr: 5e-3\nweight_decay: 1\n")
    found = resolved("--recipe", tmp_path / "r.yaml")
    assert (found["lr"], found["weight_decay"]) == (5e-3, 1.0)


def test_a_traceback_can_be_had(fastervit: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTERVIT_DEBUG", "1")
    with pytest.raises(ValueError, match="data is not given"):
        fastervit("train")


def test_the_help_shows_each_setting_once(fastervit: Run):
    told = fastervit("train", "--help").out
    options = [line.split(",")[0].split()[0] for line in told.splitlines() if line.startswith("  --")]
    assert len(options) == len(set(options))
    assert {"--recipe", "--out", "--resume", "--data", "--epochs", "--seed", "--device"} <= set(options)
    assert "--config" not in options
    for name in vars(ClassificationRecipe()):
        assert f"--{name.replace('_', '-')}" in options
    assert "--channels-last, --no-channels-last" in told
    assert "{fp32,bf16,fp16}" in told
    for noise in ("Optional", "Union", "<class", "null", "_options "):
        assert noise not in told


def test_help_of_all_commands_needs_no_torch():
    program = "import sys, openfastervit_cli as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def test_the_library_trains_without_the_command_line(tmp_path: Path):
    data = write_tree(tmp_path / "data", {"ant": 8, "bee": 8})
    settings = {"data": str(data), "img_size": 32, "batch_size": 4, "workers": 0, "device": "cpu", "epochs": 1}
    recipe = make_recipe({**settings, "model_options": SMALL, "model_options.dim": 16}, ClassificationRecipe)
    assert recipe.model_options == {**SMALL, "dim": 16}
    outcome = start(recipe, tmp_path / "run")
    assert outcome.metrics["images"] == 2
    assert outcome.best == outcome.metrics["top1"]
    with pytest.raises(ValueError, match="epochs cannot change"):
        resume(tmp_path / "run", epochs=2)
    assert resume(tmp_path / "run", workers=0).best == outcome.best
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["model_options"]["dim"] == 16


def test_a_run_goes_on_without_the_weights_it_began_with(fastervit: Run, tmp_path: Path):
    data = write_tree(tmp_path / "data", {"ant": 8, "bee": 8})
    settings = {
        "data": str(data),
        "img_size": 32,
        "batch_size": 4,
        "workers": 0,
        "device": "cpu",
        "model_options": SMALL,
    }
    start(make_recipe({**settings, "epochs": 1}, ClassificationRecipe), tmp_path / "first")
    first = tmp_path / "first" / "best.safetensors"
    recipe = make_recipe({**settings, "epochs": 2, "weights": str(first)}, ClassificationRecipe)
    whole = start(recipe, tmp_path / "whole")
    start(recipe, tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)  # as if it had been killed in the second epoch
    first.unlink()
    assert fastervit("train", "--resume", tmp_path / "run").code == 0
    assert resume(tmp_path / "run").best == whole.best
    ends = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "run")]
    assert ends[0] == ends[1]
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["weights"] == str(first)
