"""How a command line looks: jsonargparse's parser with the manners that people know from other tools.

``--img-size 480 640`` (dashes, several values), ``[PATTERN]`` (a positional argument with a default), usage errors of
one line that name the nearest command or option, and help without the names of Python types.
"""

import argparse
import difflib
import importlib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse

DEBUG = "FASTERVIT_DEBUG"
"""Environment variable: where it is set, errors keep their traceback."""

_METAVARS: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}
_EXPECTED = {"int": "a whole number", "float": "a number", "dict": "names and values, as '{dim: 64}'"}


def debugging() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def report_error(message: object) -> None:
    """Print ``fastervit: error: message``, on one line, to stderr."""
    print(f"fastervit: error: {one_line(message)}", file=sys.stderr)


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())


def settings_from(where: str, group: str = "") -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command an option for each field of a dataclass, named ``"module:Class"``.

    Its module is imported only when the command is the one asked for. The command takes the options in
    ``**settings``: those of the command line alone, by ``given``; the others are defaults, for the help. A command of
    a group of commands names the group.
    """

    def mark(command: Callable[..., int]) -> Callable[..., int]:
        command.settings_from = where  # type: ignore[attr-defined]
        command.words = [*group.split(), command.__name__]  # type: ignore[attr-defined]
        return command

    return mark


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that stand on the command line; of ``--model-options.dim 8`` the entry "model_options.dim".

    No value begins with two dashes unless it follows a "=": the parser would take it for an option.
    """
    found: dict[str, Any] = {}
    for word in command_line:
        if not word.startswith("--"):
            continue
        option, _, key = word[2:].partition("=")[0].partition(".")
        name = option.replace("-", "_")
        name = name if name in values else name.removeprefix("no_")
        if name in values and not key:
            found[name] = values[name]
        elif name in values and isinstance(values[name], Mapping) and key in values[name]:
            found[f"{name}.{key}"] = values[name][key]
    return found


command_line: list[str] = []
"""The arguments of the running command, its own name first."""


class Parser(jsonargparse.ArgumentParser):
    """A command's parser: parameters before the signature's ``*`` are positional, those after it are options."""

    _optional_positionals: frozenset[str] = frozenset()
    _has_settings = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._top = "prog" in kwargs  # jsonargparse names the parsers of commands later
        super().__init__(*args, **{**kwargs, "allow_abbrev": False, "formatter_class": _Formatter})

    @property
    def prog(self) -> str:
        """``fastervit`` or ``fastervit COMMAND``."""
        return self._prog

    @prog.setter
    def prog(self, prog: str) -> None:
        self._prog = prog.replace(" [options]", "")

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        """As jsonargparse's, under the heading "commands"."""
        looks = {"title": "commands", "metavar": "COMMAND", "description": None}
        return super().add_subcommands(*args, **{**looks, **kwargs})

    def add_function_arguments(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
        """As jsonargparse's; a parameter with a default that is not keyword-only becomes ``[NAME]``.

        All of the docstring before its arguments is the command's description.
        """
        self.description = (inspect.getdoc(function) or "").partition("\nArgs:")[0].strip()
        self._optional_positionals = frozenset(
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is not parameter.empty
        )
        where = getattr(function, "settings_from", None)
        if where is not None:
            self._has_settings = True
            self.usage = "%(prog)s [options]"
            self._drop("--config", "--print_config")  # --recipe and --print-config of the command take their place
        added: list[str] = super().add_function_arguments(function, *args, **kwargs)
        words = getattr(function, "words", [])
        if where is not None and command_line[: len(words)] == words:
            module, _, name = where.partition(":")
            jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
            settings = getattr(importlib.import_module(module), name)
            added += self.add_class_arguments(settings, None, as_group=False, fail_untyped=True)
        return added

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """As jsonargparse's, with dashes for underscores (both are understood) and ``list[int]`` as several values."""
        plain = _plain(getattr(kwargs.get("action"), "_typehint", kwargs.get("type")))
        if plain:
            hint = getattr(kwargs.pop("action", None), "_typehint", kwargs.get("type"))
            kwargs.update(plain)
            may_be_none = types.NoneType in typing.get_args(hint) and "nargs" not in plain
            if self._has_settings and may_be_none and kwargs.get("type") in _OR_NONE:
                kwargs["type"] = _OR_NONE[kwargs["type"]]
            args = tuple(name for name in args if not name.endswith("+"))
        name = str(args[0])
        if name.removeprefix("--") in self._optional_positionals:
            name = name.removeprefix("--")
            args = (name,)
            kwargs["nargs"] = "?"
        if not name.startswith("-"):
            kwargs["metavar"] = name.upper()
        elif name == "--config":
            hidden = self._top or self._has_settings
            kwargs.update(metavar="FILE", help=argparse.SUPPRESS if hidden else "Read options from a YAML file.")
        elif name.endswith("_"):  # a word of Python's, as `class_`
            args = (name.rstrip("_"), *args)
            kwargs.update(dest=name.removeprefix("--"), metavar=name.strip("-_").upper())
        elif "_" in name and (name != "--print_config" or self._has_settings):
            args = (name.replace("_", "-"), *args)
        action = super().add_argument(*args, **kwargs)
        if (
            name == "--print_config" and not self._has_settings
        ):  # of use to who writes a file for --config; noise to the others
            action.help = argparse.SUPPRESS
        return action

    def _drop(self, *names: str) -> None:
        for name in names:
            action = self._option_string_actions.pop(name, None)
            if action is not None:
                self._remove_action(action)
                for group in self._action_groups:
                    if action in group._group_actions:
                        group._group_actions.remove(action)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report wrong usage on one line, with what was probably meant, and exit with code 2."""
        if debugging() and ex is not None:
            raise ex
        report_error(_reworded(one_line(message), getattr(ex, "subcommand_parser", None) or self))
        sys.exit(2)


class _Formatter(jsonargparse.DefaultHelpFormatter):
    """Help that tells what an option does and its default; types show in the usage and in the errors."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.dest == "help":
            return "Show this help and exit."
        if not action.option_strings or action.default in (None, False, argparse.SUPPRESS):
            return action.help or ""
        return f"{action.help or ''} (default: %(default)s)"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = action.option_strings
        action.option_strings = [name for name in names if "_" not in name]
        try:
            return super()._format_action_invocation(action)
        finally:
            action.option_strings = names

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):  # the commands alone, without a line above them
            return "".join(self._format_action(command) for command in action._get_subactions())
        return super()._format_action(action)


def _or_none(kind: type) -> Callable[[str], Any]:
    """A type of argparse that also takes "none": it overrides what a recipe sets."""

    def parse(value: Any) -> Any:  # text, and then again what it was parsed to
        return None if value is None or str(value).lower() in ("none", "null") else kind(value)

    parse.__name__ = _EXPECTED.get(kind.__name__, "text")
    return parse


_OR_NONE = {kind: _or_none(kind) for kind in (int, float, str)}


def _plain(hint: Any) -> dict[str, Any]:
    """Settings of argparse for a simple type, perhaps optional or a list: short help and short errors."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not types.NoneType]
        return _plain(members[0]) if len(members) == 1 else {}
    if typing.get_origin(hint) is typing.Literal:
        return {"type": str, "choices": typing.get_args(hint)}
    if typing.get_origin(hint) is list:
        item = typing.get_args(hint)[0]
        return {**_plain(item), "nargs": "+"} if item in (int, float, str, Path) else {}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if hint in (int, float, str, Path):
        return {"type": hint, "metavar": _METAVARS.get(hint)}
    return {}


def _reworded(message: str, parser: argparse.ArgumentParser) -> str:
    """A usage error in the words of the command line, with the nearest name where one is near."""
    if wrong := re.fullmatch(r"argument (\S+): invalid choice: '?(.+?)'? \(choose from (.+)\)", message):
        choices = re.findall(r"[\w.-]+", wrong[3])
        what = "unknown command" if wrong[1] == "COMMAND" else f"{wrong[1].partition('/')[0]} cannot be"
        return f"{what} {wrong[2]!r}{_nearest(wrong[2], choices) or '; choose from ' + ', '.join(choices)}"
    if unknown := re.fullmatch(r"unrecognized arguments: (.+)", message):
        first = unknown[1].split(" ")[0]
        message = f"unknown option {first}" if first.startswith("-") else f"one argument too many: {first}"
        options = [name for action in parser._actions for name in action.option_strings if "_" not in name]
        message += _nearest(first.partition("=")[0], options)
    elif missing := re.fullmatch(r"the following arguments are required: (.+)", message):
        *commands, name = missing[1].split(", ")[0].split(".")
        for command in commands:
            parser = parser._subcommands_action.choices[command]  # type: ignore[attr-defined]
        message = f"{_shown(parser, name)} is missing"
    elif missing := re.fullmatch(r'expected "\S*subcommand" to be one of \{(.+)\}, but it was not provided\.', message):
        message = f"a command is missing: {missing[1].replace(',', ', ')}"
    elif wrong := re.fullmatch(r'Parser key "(.+?)".*: Expected a <class \'(\w+)\'>\. Got value: (.*)', message):
        message = f"{_shown(parser, wrong[1])} must be {_EXPECTED.get(wrong[2], wrong[2])}, not {wrong[3]!r}"
    elif wrong := re.fullmatch(r"argument ([^\s/]+)\S*: invalid (a .+|text) value: '(.*)'", message):
        message = f"{wrong[1]} must be {wrong[2]} or none, not {wrong[3]!r}"
    message = re.sub(r'Parser key "(\w+)"', lambda key: _shown(parser, key[1]), message)
    return message if message.endswith("?") else f"{message}; see `{parser.prog} --help`"


def _shown(parser: argparse.ArgumentParser, name: str) -> str:
    """What the user types for a parameter: ``--img-size``, ``INPUT``."""
    for action in parser._actions:
        if action.dest == name:
            return action.option_strings[0] if action.option_strings else str(action.metavar)
    return name


def _nearest(wrong: str, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(wrong, list(choices), n=1)
    return f", did you mean {near[0]}?" if near else ""
