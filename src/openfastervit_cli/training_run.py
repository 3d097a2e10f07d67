"""Training runs from the command line, whatever the task."""

import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openfastervit_cli.parser import command_line

if TYPE_CHECKING:
    from openfastervit.training.recipe import Recipe
    from openfastervit.training.trainer import Outcome


def run_training(
    kind: "type[Recipe]",
    file: Path | None,
    out: Path | None,
    resume: Path | None,
    print_config: bool,
    settings: dict[str, Any],
    command: str = "train",
) -> int:
    """Start a run, or go on with one. Returns the exit code.

    Args:
        kind: The recipe's class.
        file: A recipe.
        out: The run's folder.
        resume: The folder of a run to go on with.
        print_config: Print the recipe, and stop.
        settings: Those of the command line.
        command: What goes on with it, after ``fastervit``.
    """
    from openfastervit.training.recipe import make_recipe, read_recipe
    from openfastervit.training.run import resume as resume_run
    from openfastervit.training.run import resumed_recipe, start

    words = ["fastervit", *command_line]
    if resume is not None:
        for option, value in (("--recipe", file), ("--out", out)):
            if value is not None:
                raise ValueError(
                    f"{option} and --resume contradict each other: a resumed run has its own; leave it out"
                )
        if print_config:
            print(resumed_recipe(resume, **settings).to_yaml(), end="")
            return 0
        return _told(lambda: resume_run(resume, words, **settings), resume, command)
    chosen = make_recipe(settings, kind) if file is None else read_recipe(file, kind, **settings)
    if print_config:
        print(chosen.to_yaml(), end="")
        return 0
    folder = out or Path("runs", f"{chosen.model}-{datetime.now():%Y%m%d-%H%M%S}")
    return _told(lambda: start(chosen, folder, words), folder, command)


def _told(run: "Callable[[], Outcome]", folder: Path, command: str) -> int:
    """Run, say on stdout what came of it, and return the exit code."""
    from openfastervit.training.trainer import Stopped

    speaks = os.environ.get("RANK", "0") == "0"  # as torchrun and accelerate launch number processes
    try:
        outcome = run()
    except Stopped as stopped:
        if speaks:
            print(f"fastervit: {stopped}; go on with: fastervit {command} --resume {folder}", file=sys.stderr)
        return 130 if stopped.signal_number == signal.SIGINT else 128 + signal.SIGTERM
    if speaks:
        print(f"best {outcome.told}; the network is {folder / 'best.safetensors'}")
    return 0
