"""Runs in a process of its own: atheris on one target, until its time is over.

What a target raises is written down and fuzzing goes on; what ends the process (a crash, too much memory, a hang) is
libFuzzer's to tell, and the caller's to count.
"""

import contextlib
import hashlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import atheris

INSTRUMENTED = {"decoder": ["PIL"], "checkpoint": []}
"""Packages whose steps guide the mutations, beside our own; all of torch would take minutes."""
FINDING = "finding-"


def main(target: str, findings: Path, scratch: Path, libfuzzer: list[str]) -> None:
    """Fuzz. Does not return: libFuzzer ends the process.

    Args:
        target: "decoder" or "checkpoint".
        findings: Folder for inputs that brought something up, and what it was.
        scratch: Folder for files that are read, best in memory.
        libfuzzer: Its own options.
    """
    with atheris.instrument_imports(include=[*INSTRUMENTED[target], "nothing else"]):
        from PIL import Image

        Image.init()  # all its kinds of files
    import timm  # noqa: F401  before ours: it, and torch with it, are not instrumented
    from torch._weights_only_unpickler import Unpickler

    with atheris.instrument_imports(include=["openfastervit"]):
        from studies.fuzzing import targets
    Unpickler.load = atheris.instrument_func(Unpickler.load)
    read: Callable[[bytes], None] = targets.decode if target == "decoder" else targets.CheckpointReader(scratch)
    sentinel = targets.Sentinel()

    def one(data: bytes) -> None:
        try:
            read(data)
            sentinel.check()
        except Exception as error:
            sentinel.seen.clear()
            _write_down(findings, data, error)

    atheris.Setup([sys.argv[0], *libfuzzer], one)
    atheris.Fuzz()


def _write_down(findings: Path, data: bytes, error: Exception) -> None:
    """The first input that leads to an error of this kind from this line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    cause = error.__cause__
    place = f"{type(error).__name__}:{type(cause).__name__}:{Path(last.filename).name}:{last.lineno}"
    path = findings / f"{FINDING}{hashlib.sha256(place.encode()).hexdigest()[:12]}"
    with contextlib.suppress(FileExistsError), path.open("xb") as file:
        file.write(data)
        text = "".join(traceback.format_exception(error))
        path.with_suffix(".txt").write_text(f"{place}\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
