"""What hierarchical attention costs in three networks of others: parameters, multiply-adds, time.

::

    python -m studies.plug_and_play.overhead --out studies/results/plug_and_play_overhead.csv

Each network of docs/plug-and-play.md without it and with it, one image a call, in eager float32, nothing folded. They
take turns in one process, so that what else the machine does meets both alike: a turn is a few calls of each, and gives
one ratio of their medians. The table has the median of the ratios and their quartiles, and is written after each pair.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import openfastervit
from openfastervit import environment
from openfastervit.benchmarking import multiply_adds
from openfastervit.benchmarking.complexity import count_parameters
from openfastervit.benchmarking.timing import quartiles, time_calls, warm_up
from studies.common.table import write_table
from studies.plug_and_play.hosts import plug_into_resnet, plug_into_swin, plug_into_unet
from studies.plug_and_play.unet import UNet

TURNS, CALLS = 11, 2


@dataclass(frozen=True)
class Host:
    """A network of others."""

    name: str
    side: int
    """Pixels of the image, along both axes."""
    build: Callable[[], nn.Module]
    plug: Callable[[Any], None]


HOSTS = (
    Host("Swin-T", 224, lambda: timm.create_model("swin_tiny_patch4_window7_224"), plug_into_swin),
    Host("ResNet-50", 224, lambda: timm.create_model("resnet50"), plug_into_resnet),
    Host("U-Net", 256, UNet, plug_into_unet),
)


def main(arguments: list[str] | None = None) -> int:
    """Measure all, and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.plug_and_play.overhead", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="the CSV")
    parser.add_argument("--turns", type=int, default=TURNS, help=f"of each pair of networks (default: {TURNS})")
    parser.add_argument("--threads", type=int, help="of the processor (default: as many as torch uses)")
    options = parser.parse_args(arguments)
    if options.turns < 1:
        parser.error(f"--turns {options.turns} must be at least 1")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    about = {
        **environment.hardware(gpus=False),
        **environment.versions(("torch", "timm")),
        "openfastervit": openfastervit.__version__,
        "command": "python -m studies.plug_and_play.overhead --out OUT.csv"
        + (f" --turns {options.turns}" if options.turns != TURNS else "")
        + (f" --threads {options.threads}" if options.threads else ""),
    }
    rows = []
    for host in HOSTS:
        rows.append({**overhead(host, options.turns), **about})
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items() if key not in about), file=sys.stderr)
        write_table(options.out, rows)
    return 0


def overhead(host: Host, turns: int) -> dict[str, Any]:
    """A row of the table."""
    torch.manual_seed(0)
    without = host.build().eval()
    plugged = copy.deepcopy(without)
    host.plug(plugged)
    plugged.eval()
    pair = (without, plugged)
    image = torch.randn(1, 3, host.side, host.side)
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        calls = [lambda network=network: network(image) for network in pair]
        for call in calls:
            warm_up(call)
        for turn in range(turns):
            for which in (1, 0) if turn % 2 else (0, 1):
                seconds[which].append(statistics.median(time_calls(calls[which], CALLS)))
    ratios = [after / before for before, after in zip(*seconds, strict=True)]
    low, high = quartiles(ratios)
    parameters = [count_parameters(network) for network in pair]
    counts = [multiply_adds(network, host.side, host.side) for network in pair]
    return {
        "host": host.name,
        "side": host.side,
        "batch_size": 1,
        "parameters": parameters[0],
        "parameters_plugged": parameters[1],
        "multiply_adds": counts[0],
        "multiply_adds_plugged": counts[1],
        "ms": f"{1000 * statistics.median(seconds[0]):.1f}",
        "ms_plugged": f"{1000 * statistics.median(seconds[1]):.1f}",
        "time_ratio": f"{statistics.median(ratios):.3f}",
        "time_ratio_q1": f"{low:.3f}",
        "time_ratio_q3": f"{high:.3f}",
        "turns": turns,
        "calls_a_turn": CALLS,
        "engine": "torch-eager",
        "precision": "fp32",
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    sys.exit(main())
