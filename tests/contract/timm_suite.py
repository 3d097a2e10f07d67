"""timm's own model tests, run against ours: prepares a folder with them and calls pytest there.

The tests come from timm's source distribution of the installed version, fetched by ``make setup``.
"""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(sys.prefix) / "timm-sdist" / f"timm-{version('timm')}"


def run(selection: str, workdir: Path) -> tuple[int, int, str]:
    """Run the tests whose names match ``selection`` (pytest's -k). Returns (passed, failed, output)."""
    source = (FOLDER / "tests" / "test_models.py").read_text()
    # timm names the modules whose networks have forward_intermediates(); ours has it and belongs in that list.
    source, found = re.subn(r"(?m)^FEAT_INTER_FILTERS = \[$", "FEAT_INTER_FILTERS = [\n    'fastervit',", source)
    if found != 1:
        raise RuntimeError("timm's tests have changed: their list of modules with intermediates is not found")
    (workdir / "test_timm.py").write_text(source)
    (workdir / "conftest.py").write_text("import openfastervit\n" + (FOLDER / "tests" / "conftest.py").read_text())
    markers = re.findall(r"(?m)^    \"(\w+): marker", (FOLDER / "pyproject.toml").read_text())
    (workdir / "pytest.ini").write_text("[pytest]\nmarkers =\n" + "".join(f"    {m}\n" for m in [*markers, "timeout"]))
    done = subprocess.run(
        # Each worker of ours is one process on one core; the inner run must not split again.
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", selection, "test_timm.py"],
        cwd=workdir,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", output.splitlines()[-1])}
    return counts.get("passed", 0), counts.get("failed", 0) + counts.get("error", 0), output
