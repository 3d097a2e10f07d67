"""Checks the kernels on a GPU and measures what its networks reach, within a few minutes.

::

    python -m studies.gpu_session --out gpu

The card is left as it is: its clocks are read, never set. Each kernel is compared with float64; the two ceilings are
measured, copying and products; then networks, in turns, the most important ones first: what does not fit into the time
has a row that says so. Every row is in its file as soon as it is known. Ctrl-C keeps what there is.

``--dry-run`` goes the same way with pocket networks, on a CPU, kernels in Triton's interpreter: every row of it says
"dry run", and its figures mean nothing.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType


def main(arguments: list[str] | None = None) -> int:
    """Run the session, and say how it ended.

    Returns:
        The exit code: 0; 1 where a kernel failed its check; 2 where it cannot be done as asked; 128 and the signal's
        number where a signal ended it.
    """
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m studies.gpu_session", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables; one without tables")
    parser.add_argument("--minutes", type=float, default=9.0, help="it ends within so many (default: 9)")
    parser.add_argument("--device", default="cuda", help="cuda, or one of several, such as cuda:1")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="measure only these (default: all, by importance)")
    parser.add_argument("--dry-run", action="store_true", help="the same path with pocket networks on the CPU")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes {options.minutes} must be above 0")
    device = "cpu" if options.dry_run else options.device
    _settle(options.out, dry=options.dry_run)

    # torch and Triton read the environment when they are imported
    from studies.gpu_session.session import Session

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        session = Session(
            options.out, device, seconds=60 * options.minutes, started=started, only=options.parts, dry=options.dry_run
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return session.run()


def _settle(out: Path, *, dry: bool) -> None:
    """Set what processes inherit: where compiled code is kept, so that a second session starts sooner."""
    cache = out.absolute() / "cache"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    # Many networks are compiled at once; each would start as many compilers as there are cores.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # torch.compile then gives back what it was given


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number))


if __name__ == "__main__":
    sys.exit(main())
