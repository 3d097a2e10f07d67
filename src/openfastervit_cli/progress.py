"""How far a long job is: a bar on a terminal, a line now and then in a log. On stderr."""

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator

_LINE_SECONDS = 30.0


@contextlib.contextmanager
def progress(total: int, *, done: int = 0, hidden: bool = False) -> Iterator[Callable[[], None]]:
    """Show how many images are done, how many a second, and the time left.

    Args:
        total: Images.
        done: Those that an earlier process has done.
        hidden: Show nothing.

    Yields:
        To be called for each image.
    """
    if hidden:
        yield lambda: None
    elif sys.stderr.isatty():
        with _bar(total, done) as advance:
            yield advance
    else:
        yield _lines(total, done)


@contextlib.contextmanager
def _bar(total: int, done: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f} images/s" if task.speed else "")

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), Rate(), TimeLeft(), TextColumn("left"))
    # A narrow terminal cuts columns off; names of images that cannot be read stay above the bar.
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        task = bar.add_task("images", total=total, completed=done)
        yield lambda: bar.advance(task)


def _lines(total: int, done: int) -> Callable[[], None]:
    began = told = time.monotonic()
    before = done

    def advance() -> None:
        nonlocal done, told
        done += 1
        now = time.monotonic()
        if now - told >= _LINE_SECONDS and done < total:
            told = now
            rate = (done - before) / (now - began)
            left = datetime.timedelta(seconds=round((total - done) / rate))
            print(f"fastervit: {done} of {total} images, {rate:.1f} images/s, {left} left", file=sys.stderr, flush=True)

    return advance
