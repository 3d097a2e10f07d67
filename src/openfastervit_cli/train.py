"""``fastervit train`` and ``fastervit finetune``."""

import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openfastervit_cli.parser import command_line, given, settings_from

if TYPE_CHECKING:
    from openfastervit.training.recipe import ClassificationRecipe
    from openfastervit.training.trainer import Outcome


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

    return _train(ClassificationRecipe, recipe, out, resume, print_config, given(settings))


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

    return _train(FinetuneRecipe, recipe, out, resume, print_config, given(settings))


def _train(
    kind: "type[ClassificationRecipe]",
    file: Path | None,
    out: Path | None,
    resume: Path | None,
    print_config: bool,
    settings: dict[str, Any],
) -> int:
    from openfastervit.training.recipe import make_recipe, read_recipe
    from openfastervit.training.run import resume as resume_run
    from openfastervit.training.run import resumed_recipe, start

    command = ["fastervit", *command_line]
    if resume is not None:
        for option, value in (("--recipe", file), ("--out", out)):
            if value is not None:
                raise ValueError(
                    f"{option} and --resume contradict each other: a resumed run has its own; leave it out"
                )
        if print_config:
            print(resumed_recipe(resume, **settings).to_yaml(), end="")
            return 0
        return _told(lambda: resume_run(resume, command, **settings), resume)
    chosen = make_recipe(settings, kind) if file is None else read_recipe(file, kind, **settings)
    if print_config:
        print(chosen.to_yaml(), end="")
        return 0
    folder = out or Path("runs", f"{chosen.model}-{datetime.now():%Y%m%d-%H%M%S}")
    return _told(lambda: start(chosen, folder, command), folder)


def _told(run: "Callable[[], Outcome]", folder: Path) -> int:
    """Run, say on stdout what came of it, and return the exit code."""
    from openfastervit.training.trainer import Stopped

    speaks = os.environ.get("RANK", "0") == "0"  # as torchrun and accelerate launch number processes
    try:
        outcome = run()
    except Stopped as stopped:
        if speaks:
            print(f"fastervit: {stopped}; go on with: fastervit train --resume {folder}", file=sys.stderr)
        return 130 if stopped.signal_number == signal.SIGINT else 128 + signal.SIGTERM
    if speaks:
        print(f"best top-1 {outcome.best:.2f} %; the network is {folder / 'best.safetensors'}")
    return 0
