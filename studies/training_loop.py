"""The training loop itself: images a second, the share of a step spent waiting for data, peak memory.

::

    python -m studies.training_loop --data imagenette-128 --out studies/results/training_loop.csv

The loader alone and the step alone stand beside the loop: the loop can be no faster than the slower of them. Each row
is added to the file, with the hardware and the command that gave it.
"""

import argparse
import csv
import dataclasses
import sys
from pathlib import Path

import torch

from openfastervit import environment
from openfastervit.benchmarking.training_loop import measure
from openfastervit.training.recipe import ClassificationRecipe, read_recipe

ROOT = Path(__file__).parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Measure one recipe's loop and add a row to the table."""
    parser = argparse.ArgumentParser(prog="python -m studies.training_loop", description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/imagenette_pocket.yaml", help="what is trained")
    parser.add_argument("--data", required=True, help="the images")
    parser.add_argument("--out", type=Path, required=True, help="a CSV; the row is added to it")
    parser.add_argument("--updates", type=int, default=20, help="of each measurement")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode")
    parser.add_argument("--batch-size", type=int, help="in place of the recipe's")
    parser.add_argument("--device", default="auto", help="cpu or cuda")
    options = parser.parse_args(arguments)
    changed = {"data": options.data, "workers": options.workers, "device": options.device, "epochs": 100}
    if options.batch_size is not None:
        changed["batch_size"] = options.batch_size
    recipe = read_recipe(options.recipe, ClassificationRecipe, **changed)
    times = measure(recipe, updates=options.updates, tell=lambda line: print(line, file=sys.stderr, flush=True))
    batch = f" --batch-size {options.batch_size}" if options.batch_size is not None else ""
    row = {
        "recipe": options.recipe.stem,
        "batch_size": recipe.batch_size,
        "precision": recipe.precision,
        **{key: round(value, 4) for key, value in dataclasses.asdict(times).items()},
        **environment.hardware(),
        **environment.versions(("torch", "timm", "accelerate")),
        "threads": torch.get_num_threads(),
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} python -m studies.training_loop "
        f"--recipe recipes/{options.recipe.name} --data imagenette-128 --updates {options.updates} "
        f"--workers {options.workers}{batch}",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    new = not options.out.exists()
    with options.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(
        f"loop {times.loop:.0f} images/s, loader alone {times.loader:.0f}, step alone {times.step:.0f}; "
        f"waiting for data {times.waiting:.1%} of the time (at most {times.waiting_most:.1%}); "
        f"peak memory {times.peak_bytes / 2**30:.2f} GiB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
