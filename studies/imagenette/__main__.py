"""Imagenette at 128 x 128 from scratch: FasterViT beside three networks of equal cost, trained alike.

::

    python -m studies.imagenette --scale cpu --data imagenette-128 --out runs/imagenette-cpu

Each network is trained with the same recipe, for as many seeds as asked. A run that is interrupted goes on where it
was; one that is done is not done again. The results are written after each run: a CSV with a row a run, and a plot.
"""

import argparse
import sys
from pathlib import Path

from studies.common.at_once import Failures, train_all
from studies.common.command_line import run_study
from studies.imagenette.networks import FULL, POCKET
from studies.imagenette.results import write_results
from studies.imagenette.runs import RunPlan, run_of

ROOT = Path(__file__).parents[2]

SCALES: dict[str, RunPlan] = {
    "smoke": RunPlan(POCKET, ROOT / "recipes/imagenette_pocket.yaml", {"epochs": 2, "warmup_epochs": 0.5}),
    "cpu": RunPlan(POCKET, ROOT / "recipes/imagenette_pocket.yaml", {}),
    "gpu": RunPlan(FULL, ROOT / "recipes/imagenette_fastervit_0.yaml", {}),
}


def main(arguments: list[str] | None = None) -> int:
    """Train what is not trained yet, and write the results of all."""
    parser = argparse.ArgumentParser(prog="python -m studies.imagenette", description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=sorted(SCALES), required=True, help="size of the networks, length")
    parser.add_argument("--data", required=True, help="Imagenette, with train/ and val/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of each network for each")
    parser.add_argument("--networks", nargs="+", help="only these (default: all)")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="runs at a time, each a process")
    parser.add_argument("--device", default="auto", help="cpu or cuda (default: a GPU where there is one)")
    options = parser.parse_args(arguments)
    plan = SCALES[options.scale]
    networks = options.networks or list(plan.networks)
    for name in networks:
        if name not in plan.networks:
            parser.error(f"unknown network {name!r}; there is {', '.join(plan.networks)}")
    if options.at_once < 1:
        parser.error(f"--at-once {options.at_once} must be at least 1")
    machine = {"data": options.data, "device": options.device}
    runs = [run_of(plan, name, seed, **machine) for seed in options.seeds for name in networks]
    command = ["python", "-m", "studies.imagenette", "--scale", options.scale, "--data", "imagenette-128"]
    command += ["--out", "OUT"]

    def study() -> Failures:
        def write(failures: Failures) -> None:
            write_results(options.out, plan, options.scale, " ".join(command))

        failures = train_all(runs, options.out, command=command, at_once=options.at_once, after_each=write)
        print(f"{options.out / 'results.csv'} and {options.out / 'results.png'}")
        return failures

    return run_study(study)


if __name__ == "__main__":
    sys.exit(main())
