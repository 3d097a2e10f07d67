"""How fast images are read and classified: by decoding alone, an engine, the local predictor, and a cluster of Ray's.

::

    python -m studies.scale --data imagenette-val-224 --out scale_cpu.csv

A worker is a processor core with an engine and a task that decodes, or with ``--device cuda`` a GPU. Each figure is
from a process of its own that may use as many cores as it has workers, and so may all that it starts; the figures are
taken in turns, and their median counts. A cluster takes seconds to start, which tell nothing of a job of hours: its
rate is that of its images from the first fifth to the last tenth.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from openfastervit import create_model, environment, save_checkpoint
from openfastervit.data.images import find_images
from studies.common.table import write_table
from studies.scale.measures import MEASURES, Case, in_a_process


def main(arguments: list[str] | None = None) -> int:
    """Measure in turns, and write the table."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as folder:
        images = linked(options.data, Path(folder, "images"), options.images)
        checkpoint = options.checkpoint or untrained(options.model, Path(folder, f"{options.model}.safetensors"))
        cases = [
            Case(what, workers, options.device, options.engine, options.batch_size, checkpoint, images)
            for what in MEASURES
            for workers in options.workers
        ]
        rates: dict[Case, list[float]] = {case: [] for case in cases}
        for turn in range(options.repeats):
            for case in cases:
                rates[case].append(in_a_process(case))
                print(f"{turn + 1}: {case.what}, {case.workers}: {rates[case][-1]:.2f} images/s", file=sys.stderr)
    write_table(options.out, table(rates, about(options)))
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    found = argparse.ArgumentParser(prog="python -m studies.scale", description=(__doc__ or "").partition("\n")[0])
    found.add_argument("--data", type=Path, required=True, help="photographs")
    found.add_argument("--out", type=Path, required=True, help="the CSV")
    found.add_argument("--model", default="fastervit_0", help="the network, with weights that were never trained")
    found.add_argument("--checkpoint", type=Path, help="a network in its place")
    found.add_argument("--engine", default="openvino", help="what runs the network")
    found.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    found.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="cores, or GPUs")
    found.add_argument("--batch-size", type=int, default=32)
    found.add_argument("--images", type=int, default=1500, help="that are read; photographs are taken again and again")
    found.add_argument("--repeats", type=int, default=3, help="turns")
    return found.parse_args(arguments)


def table(rates: dict[Case, list[float]], told: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a case: its rate, the share of each worker, and how it compares with the first number of workers."""
    medians = {case: statistics.median(found) for case, found in rates.items()}
    first = {case.what: rate for case, rate in reversed(medians.items())}
    return [
        {
            "what": case.what,
            "device": case.device,
            "workers": case.workers,
            "images_per_second": f"{rate:.2f}",
            "lowest": f"{min(rates[case]):.2f}",
            "highest": f"{max(rates[case]):.2f}",
            "per_worker": f"{rate / case.workers:.2f}",
            "times_one_worker": f"{rate / first[case.what]:.2f}",
            "engine": "" if case.what == "decoding alone" else case.engine,
            **told,
        }
        for case, rate in medians.items()
    ]


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Hardware, versions, and the command."""
    defaults = vars(_options(["--data", "x", "--out", "x"]))
    changed = {name: value for name, value in vars(options).items() if value != defaults[name]}
    changed = {"data": options.data, "out": options.out, **changed}
    words = ["python", "-m", "studies.scale"]
    for name, value in changed.items():
        values = value if isinstance(value, list) else [value.name if isinstance(value, Path) else value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return {
        "model": options.checkpoint.name if options.checkpoint else options.model,
        "batch_size": options.batch_size,
        "images": options.images,
        "repeats": options.repeats,
        **environment.hardware(),
        **environment.versions(("torch", "ray", "pyarrow", "pillow")),
        "command": " ".join(words),
    }


def linked(data: Path, folder: Path, count: int) -> Path:
    """A folder of so many images: links to photographs, evenly from the first to the last."""
    found = find_images(data)
    folder.mkdir()
    for number in range(count):
        photograph = found[number * len(found) // count] if count <= len(found) else found[number % len(found)]
        (folder / f"{number:06}{photograph.suffix}").symlink_to(photograph.resolve())
    return folder


def untrained(model: str, path: Path) -> Path:
    """A checkpoint of a network as it is made: what it costs does not depend on what it has learnt."""
    torch.manual_seed(0)
    network = create_model(model)
    return save_checkpoint(network, path, metadata={"model": model})


if __name__ == "__main__":
    sys.exit(main())
