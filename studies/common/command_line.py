"""The command line that the studies which train share, and how they end."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from openfastervit.training.trainer import Stopped
from studies.common.at_once import Failures

SEEDS: Mapping[str, tuple[int, ...]] = MappingProxyType({"smoke": (0, 1), "cpu": (0, 1, 2), "gpu": (0, 1, 2)})
RUNS_ON_A_GPU = 3
"""At once: a small network leaves most of a large GPU idle."""


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    study: str
    scale: str
    data: Path
    out: Path
    seeds: tuple[int, ...]
    only: tuple[str, ...]
    """Names of the variants."""
    at_once: int
    device: str
    threads: int | None

    @property
    def command(self) -> list[str]:
        """As one would give it again; folders by what they are."""
        found = ["python", "-m", f"studies.{self.study}", "--scale", self.scale, "--data", "DATA", "--out", "OUT"]
        if self.seeds != SEEDS[self.scale]:
            found += ["--seeds", *map(str, self.seeds)]
        return found if self.threads is None else [*found, "--threads", str(self.threads)]


def parser(study: str, description: str | None) -> argparse.ArgumentParser:
    """With all that the studies share.

    Args:
        study: Its module's name.
        description: Its docstring; the first line is shown.
    """
    found = argparse.ArgumentParser(
        prog=f"python -m studies.{study}", description=(description or "").partition("\n")[0]
    )
    found.add_argument("--scale", choices=list(SEEDS), required=True, help="size of the networks, length of the runs")
    found.add_argument("--data", type=Path, required=True, help="Imagenette, with train/ and val/")
    found.add_argument("--out", type=Path, required=True, help="folder of the runs and results")
    found.add_argument(
        "--seeds", type=int, nargs="+", help="one run of each variant for each (default: 0 1 2; smoke: 0 1)"
    )
    found.add_argument("--only", nargs="+", metavar="NAME", help="train only these variants (default: all)")
    found.add_argument(
        "--at-once",
        type=int,
        metavar="N",
        help="runs at a time, each a process with its share of the cores (default: one a core, on a GPU "
        f"{RUNS_ON_A_GPU}, one at the smallest scale)",
    )
    found.add_argument("--device", default="auto", help="cpu or cuda (default: a GPU where there is one)")
    found.add_argument("--threads", type=int, help="of measurements of speed (default: as many as torch uses)")
    return found


def read_options(
    study: str, names: Collection[str], arguments: list[str] | None, found: argparse.ArgumentParser
) -> Options:
    """The options, checked.

    Args:
        study: Its module's name.
        names: Of its variants.
        arguments: The command line; None for the process's.
        found: What ``parser`` gave, with the study's own options.
    """
    given = found.parse_args(arguments)
    only = tuple(given.only or names)
    for name in only:
        if name not in names:
            found.error(f"--only {name}: there is no such variant; there is {', '.join(names)}")
    seeds = tuple(given.seeds or SEEDS[given.scale])
    if len(set(seeds)) < len(seeds):
        found.error(f"--seeds {' '.join(map(str, seeds))}: each seed once")
    if given.at_once is not None and given.at_once < 1:
        found.error(f"--at-once {given.at_once} must be at least 1")
    return Options(
        study=study,
        scale=given.scale,
        data=given.data,
        out=given.out,
        seeds=seeds,
        only=only,
        at_once=given.at_once or _at_once(given.scale),
        device=given.device,
        threads=given.threads,
    )


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _at_once(scale: str) -> int:
    return {"smoke": 1, "cpu": cores(), "gpu": RUNS_ON_A_GPU}[scale]


def run_study(study: Callable[[], Failures]) -> int:
    """Run it, and say how it ended.

    Returns:
        The exit code: 0; 1 where a run failed, each of which is named; 2 where it cannot be done as asked; 128 and the
        signal's number where a signal stopped it.
    """
    try:
        failures = study()
    except Stopped as stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:  # between two runs, or while speed is measured
        print("interrupted; the same command goes on", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for title, message in failures.items():
        print(f"failed: {title}: {message}", file=sys.stderr)
    return 1 if failures else 0
