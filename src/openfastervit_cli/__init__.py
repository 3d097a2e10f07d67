"""The command ``fastervit``.

``COMMANDS`` is the table of commands; a function's signature and docstring are its command line. To add one, write a
function in a module of this package and name it in the table. A command imports what it needs when it runs: torch takes
seconds to import, and ``fastervit --help`` should answer at once. That is also why this is a package of its own, beside
``openfastervit``, whose import registers the networks with timm.
"""

import contextlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jsonargparse

from openfastervit_cli import detect, segment
from openfastervit_cli import parser as parsing
from openfastervit_cli.app import app
from openfastervit_cli.benchmark import benchmark
from openfastervit_cli.demo import demo
from openfastervit_cli.evaluate import evaluate
from openfastervit_cli.explain import explain
from openfastervit_cli.export import export
from openfastervit_cli.models import info, list_models
from openfastervit_cli.parser import Parser, debugging, one_line, report_error
from openfastervit_cli.predict import predict
from openfastervit_cli.serve import serve
from openfastervit_cli.train import finetune, train

COMMANDS: dict[str, Callable[..., int] | dict[str, Any]] = {
    "demo": demo,
    "list": list_models,
    "info": info,
    "predict": predict,
    "explain": explain,
    "train": train,
    "finetune": finetune,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "export": export,
    "serve": serve,
    "app": app,
    "detect": {
        "_help": "Detection and instance segmentation: train, evaluate, predict.",
        "train": detect.train,
        "evaluate": detect.evaluate,
        "predict": detect.predict,
    },
    "segment": {
        "_help": "Semantic segmentation: train, evaluate, predict.",
        "train": segment.train,
        "evaluate": segment.evaluate,
        "predict": segment.predict,
    },
}
"""Each function returns the exit code. A dict is a group: ``{"detect": {"_help": "...", "train": train_detector}}``."""

_ABOUT = "FasterViT: image backbones with hierarchical attention, for any image size."
_CODES = (
    "Exit codes: 0 done; 1 error; 2 wrong usage; 3 some images could not be read; 130 interrupted; "
    "143 stopped by a signal, to be resumed."
)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Errors that a user can mend are one line on stderr; ``FASTERVIT_DEBUG=1`` shows where they come from. Other
    exceptions are bugs and keep their traceback.
    """
    args = sys.argv[1:] if args is None else list(args)
    parsing.command_line[:] = args
    try:
        with _warnings_on_one_line():
            code = _run(args or ["--help"])
        sys.stdout.flush()  # here, where a reader that has gone is still dealt with
    except KeyboardInterrupt:
        print("fastervit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has what it wanted (`| head`). Nothing is left for the interpreter to flush into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as for a command that SIGPIPE ends
    except (OSError, ValueError) as error:
        if debugging():
            raise
        report_error(_told(error))
        return 1
    return code


def _run(args: list[str]) -> int:
    try:
        code: int = jsonargparse.auto_cli(
            COMMANDS,
            args=args,
            parser_class=Parser,
            prog="fastervit",
            description=_ABOUT,
            epilog=_CODES,
            version=importlib.metadata.version("openfastervit"),
        )
    except SystemExit as exit_:  # help, version, wrong usage
        return int(exit_.code or 0)
    return code


def _told(error: Exception) -> str:
    """An error's message; the operating system's without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


@contextlib.contextmanager
def _warnings_on_one_line() -> Iterator[None]:
    """Show warnings as ``fastervit: warning: ...``: a user has no use for the line of code that warns."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"fastervit: warning: {one_line(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = cast(Any, show)
        yield
