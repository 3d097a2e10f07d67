"""``fastervit train`` and ``fastervit finetune``."""

from pathlib import Path
from typing import Any

from openfastervit_cli.parser import given, settings_from
from openfastervit_cli.training_run import run_training


@settings_from("openfastervit.training.recipe:ClassificationRecipe")
def train(
    *,
    recipe: Path | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    print_config: bool = False,
    **settings: Any,
) -> int:
    """Train a classifier, from a folder of images or another data set.

    Every setting of a recipe is an option too, and overrides the recipe's. The run's folder gets the settings, a table
    and curves of the figures, checkpoints, and the best network as best.safetensors. A run that was stopped or killed
    goes on with --resume. Start it with torchrun or accelerate launch for several GPUs or machines. SIGTERM and Ctrl-C
    save first; the exit code is then 143 or 130.

    Args:
        recipe: A YAML file of settings, such as those in recipes/.
        out: The run's folder, new or empty (default: runs/MODEL-DATE).
        resume: The folder of a run to go on with.
        print_config: Print all settings as they would be used, and stop.
        settings: Settings of the recipe.
    """
    from openfastervit.training.recipe import ClassificationRecipe

    return run_training(ClassificationRecipe, recipe, out, resume, print_config, given(settings))


@settings_from("openfastervit.training.recipe:FinetuneRecipe")
def finetune(
    *,
    recipe: Path | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    print_config: bool = False,
    **settings: Any,
) -> int:
    """Fine-tune a classifier on a data set of your own.

    As `fastervit train`, with defaults for a small data set on one machine: released weights (for non-commercial use
    only; --weights starts from a file instead), a small learning rate that shrinks towards the input, mild
    augmentation, an average of the weights. --img-size takes a higher resolution, --freeze-backbone trains the
    classifier alone.

    Args:
        recipe: A YAML file of settings, such as those in recipes/.
        out: The run's folder, new or empty (default: runs/MODEL-DATE).
        resume: The folder of a run to go on with.
        print_config: Print all settings as they would be used, and stop.
        settings: Settings of the recipe.
    """
    from openfastervit.training.recipe import FinetuneRecipe

    return run_training(FinetuneRecipe, recipe, out, resume, print_config, given(settings))
