"""Bytes that nobody would write, to the decoder of images or the reader of checkpoints, with atheris.

::

    python -m studies.fuzzing decoder --seconds 600 --corpus corpus-decoder --out studies/results/fuzzing.csv

Only documented errors may come out (``ImageError``, ``CheckpointError``), on one line; no program may be started, no
connection opened; no crash, no hang, no more memory than ``--memory-mb``. Corpus and findings stay in the folder: the
next run goes on from them. A row is added to the table, with the hardware and the command that gave it.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from openfastervit import environment
from studies.fuzzing.run import FINDING
from studies.fuzzing.seeds import write_seeds
from studies.fuzzing.targets import MAX_BYTES

HANG_S = 30
"""Of one input: that is a finding."""
_MOST_STARTS = 20
_ENDED = ("crash-", "oom-", "timeout-", "leak-")
"""What libFuzzer calls the inputs that ended its process."""


@dataclass
class Fuzzed:
    """What came of it."""

    executions: int = 0
    seconds: float = 0.0
    peak_mb: int = 0
    features: int = 0
    """Of coverage: edges and how often they were taken."""
    starts: int = 0


def main(arguments: list[str] | None = None) -> int:
    """Fuzz one target, and add a row to the table.

    Returns:
        The exit code: 1 where something was found.
    """
    parser = argparse.ArgumentParser(prog="python -m studies.fuzzing", description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=["decoder", "checkpoint"], help="what is fuzzed")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of inputs; seeds are written into it")
    parser.add_argument("--seconds", type=int, default=600, help="how long")
    parser.add_argument("--runs", type=int, help="inputs at most")
    parser.add_argument("--memory-mb", type=int, default=2500, help="at most")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    parser.add_argument("--out", type=Path, help="a CSV; the row is added to it")
    options = parser.parse_args(arguments)
    seeds = write_seeds(options.target, options.corpus / "inputs")
    found = options.corpus / "found"
    found.mkdir(parents=True, exist_ok=True)
    result = _fuzz(options, found)
    findings = sorted(path for path in found.iterdir() if path.name.startswith((FINDING, *_ENDED)))
    findings = [path for path in findings if path.suffix != ".txt"]
    row = {
        "target": options.target,
        "seeds": seeds,
        "executions": result.executions,
        "seconds": round(result.seconds),
        "executions_per_second": round(result.executions / max(result.seconds, 1e-9)),
        "features": result.features,
        "peak_memory_mb": result.peak_mb,
        "starts": result.starts,
        "findings": len(findings),
        "seed": options.seed,
        **environment.hardware(gpus=False),
        **environment.versions(("atheris", "pillow", "torch", "safetensors")),
        "command": f"python -m studies.fuzzing {options.target} --seconds {options.seconds} --corpus CORPUS"
        f"{f' --seed {options.seed}' if options.seed != 1 else ''} --out OUT",
    }
    if options.out is not None:
        _add(options.out, row)
    print(
        f"{options.target}: {result.executions} inputs in {result.seconds:.0f} s, {row['executions_per_second']} a "
        f"second, at most {result.peak_mb} MB; {len(findings)} findings"
    )
    for path in findings:
        note = path.with_suffix(".txt")
        print(f"  {path}: {note.read_text(encoding='utf-8').splitlines()[0] if note.exists() else 'see above'}")
    return 1 if findings else 0


def _fuzz(options: argparse.Namespace, found: Path) -> Fuzzed:
    """Until the time is over, from anew where a finding ended the process."""
    result = Fuzzed()
    end = time.monotonic() + options.seconds
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as scratch:
        while result.starts < _MOST_STARTS and (left := end - time.monotonic()) > 1:
            if options.runs is not None and result.executions >= options.runs:
                break
            result.starts += 1
            command = [sys.executable, "-m", "studies.fuzzing.run", options.target, str(found), scratch]
            command += [
                *(f"-max_total_time={int(left)}", f"-timeout={HANG_S}", f"-rss_limit_mb={options.memory_mb}"),
                *(f"-max_len={MAX_BYTES}", f"-artifact_prefix={found}{os.sep}", f"-seed={options.seed}"),
                *("-print_final_stats=1", "-use_value_profile=0", "-verbosity=1"),
                *([f"-runs={options.runs - result.executions}"] if options.runs is not None else []),
                str(options.corpus / "inputs"),
            ]
            began = time.monotonic()
            done = subprocess.run(command, capture_output=True, check=False)
            told = done.stderr.decode(errors="replace")
            # Without the time that imports take, where libFuzzer came to its end.
            result.seconds += _number(r"Done \d+ runs in (\d+) second", told) or time.monotonic() - began
            result.executions += _number(r"stat::number_of_executed_units:\s+(\d+)", told)
            result.peak_mb = max(result.peak_mb, _number(r"stat::peak_rss_mb:\s+(\d+)", told))
            result.features = max([result.features, *(int(n) for n in re.findall(r"\bft: (\d+)", told))])
            if done.returncode == 0:
                break
            print(told[-3000:], file=sys.stderr)
            if "number_of_executed_units" not in told:
                raise ValueError("atheris did not run: see above")
    return result


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _add(path: Path, row: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    sys.exit(main())
