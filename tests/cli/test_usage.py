"""The command line itself: help, wrong usage, errors, how a command ends."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from jsonargparse import auto_parser

import openfastervit
import openfastervit_cli
from openfastervit_cli.parser import Parser
from tests.cli.conftest import Run


def in_process(*args: str, code: str = "pass") -> str:
    return f"import sys, openfastervit_cli; status = openfastervit_cli.main({list(args)!r}); {code}; sys.exit(status)"


def python(*args: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=120, check=False, **kwargs)


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["predict", "--help"], ["predict"], ["nonsense"]])
def test_nothing_heavy_is_imported_to_answer_at_once(args: list[str]):
    heavy = ["torch", "timm", "numpy", "PIL", "openfastervit", "rich"]
    told = python("-c", in_process(*args, code=f"print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"))
    assert told.stderr.endswith("[]\n")


def test_help_names_every_command(fastervit: Run):
    outcome = fastervit("--help")
    assert outcome.code == 0
    for name in openfastervit_cli.COMMANDS:
        assert f"\n  {name} " in outcome.out
    assert "Exit codes" in outcome.out


def test_alone_it_prints_help(fastervit: Run):
    assert fastervit() == fastervit("--help")


def leaves() -> list[str]:
    """All commands, those of groups too: "predict", "detect train"."""
    found = []
    for name, command in openfastervit_cli.COMMANDS.items():
        if isinstance(command, dict):
            found += [f"{name} {inner}" for inner in command if inner != "_help"]
        else:
            found.append(name)
    return sorted(found)


@pytest.mark.parametrize("name", leaves())
def test_every_option_has_help(fastervit: Run, name: str):
    outcome = fastervit(*name.split(), "--help")
    assert outcome.code == 0
    assert f"usage: fastervit {name}" in outcome.out
    parser = auto_parser(openfastervit_cli.COMMANDS, parser_class=Parser, prog="fastervit")
    for word in name.split():
        parser = parser._subcommands_action.choices[word]
    for action in parser._actions:
        assert action.help, f"{name} {action.dest} has no help; is docstring-parser installed?"


def test_help_tells_the_whole_docstring(fastervit: Run):
    words = " ".join(fastervit("predict", "--help").out.split())
    assert "Prints the best classes of each image" in words
    assert "exit code is 3" in words


def test_version(fastervit: Run):
    assert fastervit("--version").out == f"fastervit {openfastervit.__version__}\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["predct"], ["unknown command 'predct'", "did you mean predict?"]),
        (["xyzzy"], ["unknown command 'xyzzy'", "choose from", "predict"]),
        (["info", "fastervit_0", "--img-sze", "64"], ["unknown option --img-sze", "did you mean --img-size?"]),
        (["info", "fastervit_0", "--img-siz=64"], ["unknown option --img-siz", "did you mean --img-size?"]),
        (["info", "fastervit_0", "--xyzzy"], ["unknown option --xyzzy", "fastervit info --help"]),
        (["info"], ["NAME is missing", "fastervit info --help"]),
        (["info", "fastervit_0", "fastervit_1"], ["one argument too many: fastervit_1"]),
        (["info", "fastervit_0", "--img-size", "big"], ["--img-size must be a whole number, not 'big'"]),
        (["info", "fastervit_0", "--img-size"], ["--img-size", "expected at least one argument"]),
        (["info", "fastervit_0", "--windows", "padd"], ["--windows cannot be 'padd'", "did you mean pad?"]),
        (["info", "fastervit_0", "--windows", "xyzzy"], ["--windows cannot be 'xyzzy'", "choose from pad, fit"]),
        (["predict", "x.png"], ["--checkpoint is missing", "fastervit predict --help"]),
        (["predict", "--checkpoint", "f"], ["INPUT is missing"]),
        (["predict", "x.png", "--checkpoint", "f", "--topk", "1.5"], ["--topk must be a whole number, not '1.5'"]),
        (["demo", "--epochs", "many"], ["--epochs must be a whole number, not 'many'"]),
        (["predict", "x.png", "--config", "nowhere.yaml"], ["--config", "nowhere.yaml"]),
    ],
)
def test_wrong_usage(fails, args: list[str], says: list[str]):
    fails(*args, code=2, says=says)


@pytest.mark.parametrize("spelling", ["--img-size", "--img_size"])
def test_dashes_and_underscores_are_one(fastervit: Run, spelling: str):
    assert "at 64 x 96" in fastervit("info", "fastervit_0", spelling, 64, 96).out


def test_options_from_a_file(fastervit: Run, tmp_path: Path):
    printed = fastervit("info", "fastervit_0", "--img-size", 64, 96, "--print_config")
    (tmp_path / "info.yaml").write_text(printed.out)
    assert (
        fastervit("info", "--config", tmp_path / "info.yaml").out
        == fastervit("info", "fastervit_0", "--img-size", 64, 96).out
    )
    (tmp_path / "typo.yaml").write_text("img_sizes: [64]\n")
    outcome = fastervit("info", "fastervit_0", "--config", tmp_path / "typo.yaml")
    assert outcome.code == 2
    assert "img_sizes" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """Put a command in the table that does what it is told."""

    def install(action):
        def act() -> int:
            """Act."""
            return action() or 0

        monkeypatch.setitem(openfastervit_cli.COMMANDS, "act", act)

    return install


def raising(error: BaseException):
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (ValueError(), "ValueError"),
        (FileNotFoundError("no file at x; check the path"), "no file at x; check the path"),
        (PermissionError(13, "Permission denied", "rows.csv"), "rows.csv: Permission denied"),
    ],
)
def test_errors_of_the_user_are_one_line(fails, command, error: Exception, message: str):
    command(raising(error))
    assert fails("act", says=[]) == f"fastervit: error: {message}\n"


@pytest.mark.parametrize("debug", ["1", "yes"])
def test_a_traceback_can_be_had(fastervit: Run, command, monkeypatch: pytest.MonkeyPatch, debug: str):
    command(raising(ValueError("two lines")))
    monkeypatch.setenv("FASTERVIT_DEBUG", debug)
    with pytest.raises(ValueError, match="two lines"):
        fastervit("act")


def test_a_bug_keeps_its_traceback(fastervit: Run, command):
    command(raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        fastervit("act")


def test_ctrl_c_ends_cleanly(fastervit: Run, command):
    command(raising(KeyboardInterrupt()))
    outcome = fastervit("act")
    assert outcome.code == 130
    assert outcome.err == "fastervit: interrupted\n"


def test_warnings_are_one_line_and_only_inside(fastervit: Run, command):
    before = warnings.showwarning
    command(lambda: warnings.warn("two\nlines", stacklevel=1))
    assert fastervit("act").err == "fastervit: warning: two lines\n"
    assert warnings.showwarning is before


TALKATIVE = """
import sys, openfastervit_cli
def talk() -> int:
    "Talk."
    for line in range(100_000):
        print(line)
    return 0
openfastervit_cli.COMMANDS["talk"] = talk
sys.exit(openfastervit_cli.main(["talk"]))
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("program", [TALKATIVE, in_process("--help")])
def test_a_reader_that_goes_away_is_no_error(program: str, unbuffered: str):
    """`fastervit ... | head`."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    # argparse itself passes over a closed pipe, where the help is not kept in a buffer.
    assert process.wait(timeout=60) == (0 if unbuffered and program is not TALKATIVE else 141)
