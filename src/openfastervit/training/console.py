"""What a run tells on the terminal."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Console:
    """On a terminal a bar for the epoch; elsewhere, as in a job's log, a line now and then. All on stderr.

    Args:
        speaks: Whether this process is the one that tells.
    """

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        self._console = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told_at = time.monotonic()
        if speaks and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[detail]}"),
                console=self._console,
                transient=True,
            )

    @property
    def is_terminal(self) -> bool:
        """Whether somebody may be looking at a bar."""
        return self._bar is not None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, message: str) -> None:
        """A line that stays."""
        if not self.speaks:
            return
        if self._bar is not None:
            self._bar.console.print(message, markup=False)
        else:
            print(message, file=sys.stderr, flush=True)

    def step(self, what: str, done: int, total: int, detail: str = "", *, line: bool = False) -> None:
        """Move the bar; without one, with ``line`` or after half a minute of silence, print a line."""
        if not self.speaks:
            return
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(what, total=total, detail=detail)
            self._bar.update(self._task, description=what, completed=done, total=total, detail=detail)
        elif line or time.monotonic() - self._told_at > 30:
            self._told_at = time.monotonic()
            print(f"{what}  {done}/{total}  {detail}".rstrip(), file=sys.stderr, flush=True)
