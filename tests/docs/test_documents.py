"""Every command and every block of Python in the documentation is run, as a reader would type it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import openfastervit_cli
from tests.conftest import REPOSITORY
from tests.docs.reader import blocks, commands, shortened, write_photos
from tests.pocket import write_checkpoint
from tests.shapes import write_coco, write_semantic

DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BIN = Path(sys.executable).parent


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "MAKEFLAGS": ""}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which `make demo` has been run, in full, with its report in demo-report/."""
    folder = tmp_path_factory.mktemp("reader")
    done = shell(f"make --no-print-directory demo OUT={folder}/demo-report", REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"Made {folder}/demo-report/report.html")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.timeout(600)
@pytest.mark.early  # one process runs the demo
def test_the_demo_reads_98_percent_of_held_out_digits(demo: Path) -> None:
    summary = json.loads((demo / "demo-report" / "summary.json").read_text())
    assert summary["top1"] >= 0.98
    assert summary["interrupted"] is False


@pytest.mark.timeout(600)
@pytest.mark.early  # one process runs the demo
def test_readme_commands(demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of fastervit in this process: `make demo` has run it in one of its own."""
    seen = commands(REPOSITORY / "README.md")
    assert "make demo" in seen
    assert "make test" in seen
    monkeypatch.chdir(demo)
    write_photos(demo / "photos")
    write_coco(demo / "coco")
    write_semantic(demo / "scenes")
    for command in seen:
        if command == "make demo":
            continue  # the fixture ran it
        first, *words = shlex.split(shortened(command))
        if first == "fastervit":
            code = openfastervit_cli.main(words)
            told = "".join(capsys.readouterr())
        else:
            # These would run the tests within the tests, or change the environment they run in.
            dry = command.replace("make", "make -n").replace(
                "pip install", f"{sys.executable} -m pip install --dry-run --quiet --no-build-isolation --no-deps"
            )
            done = shell(dry, REPOSITORY)
            code, told = done.returncode, done.stdout + done.stderr
        assert code == 0, f"{command}\n{told}"
    assert (demo / "demo-report" / "scores.csv").is_file()


AFTER_COMMANDS = ("detection.md", "segmentation.md")
"""Their Python uses what their commands leave: ``test_dense_documents`` runs both."""


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path.name not in AFTER_COMMANDS], ids=lambda path: path.name
)
def test_python_blocks(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    write_checkpoint(tmp_path / "model.safetensors")
    for block in blocks(document, "python"):
        exec(compile(block, str(document), "exec"), {})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if not target.startswith("https://"):
            assert (document.parent / target).exists(), target


def test_contributing_commands_exist() -> None:
    for command in commands(REPOSITORY / "CONTRIBUTING.md"):
        assert shell(command.replace("make", "make -n"), REPOSITORY).returncode == 0, command


def test_the_table_of_the_family_is_right() -> None:
    """The figures in the README are those that `fastervit list` counts."""
    counted = {
        row[0]: row[1:] for row in (line.split() for line in shell("fastervit list", REPOSITORY).stdout.splitlines())
    }
    rows = re.findall(r"(?m)^\| `(fastervit_\w+)` \| ([\d.]+) M \| ([\d.]+) G \| (\d+) \|", DOCUMENTS[0].read_text())
    assert {row[0] for row in rows} == set(counted) - {"name"}
    for name, parameters, macs, size in rows:
        digits = len(parameters.partition(".")[2])
        assert parameters == f"{int(counted[name][0]) / 1e6:.{digits}f}"
        assert macs == f"{int(counted[name][1]) / 1e9:.{len(macs.partition('.')[2])}f}"
        assert counted[name][2] == f"{size}x{size}"
