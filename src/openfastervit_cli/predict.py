"""``fastervit predict``."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from openfastervit_cli.parser import report_error

if TYPE_CHECKING:
    from openfastervit.inference import Prediction

_SUFFIXES: dict[str, Literal["csv", "jsonl"]] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def predict(
    input: Path,
    *,
    checkpoint: Path,
    model: str | None = None,
    topk: int = 5,
    out: Path | None = None,
    format: Literal["csv", "jsonl"] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    img_size: list[int] | None = None,
) -> int:
    """Classify an image, or all images in a folder.

    Prints the best classes of each image, or with --out or --format writes one row an image: CSV with the columns
    image, class_1, index_1, score_1, class_2, ...; or JSON lines, {"image": ..., "predictions": [{"class": ...,
    "index": ..., "score": ...}, ...]}. Scores are probabilities. An image that cannot be read is named on stderr and
    has no row; the others go on, and the exit code is 3. Ctrl-C keeps the rows written so far.

    Args:
        input: An image, or a folder: all images in it and its subfolders, sorted by name.
        checkpoint: Weights, as safetensors or torch file, in any layout.
        model: Name of the network, where the checkpoint does not tell it.
        topk: Classes shown for each image.
        out: File for the rows, '-' for standard output. It appears when complete.
        format: Of the rows; by default what the suffix of --out says.
        batch_size: Images the network takes at once.
        device: cpu, cuda, cuda:1, mps; auto takes the best there is.
        img_size: Side, or height and width, that images are scaled to; by default the checkpoint's.
    """
    kind = _row_format(out, format)
    if str(out) == "-":
        out = None
    from openfastervit.data.images import find_images
    from openfastervit.inference import Failure, Predictor, csv_header

    images = find_images(input)
    predictor = Predictor.from_checkpoint(checkpoint, model, img_size=img_size, device=device)
    results = predictor.predict(images, topk=topk, batch_size=batch_size)
    row = _row_writer(kind)
    done = failed = 0
    try:
        with _destination(out) as file, _progress(len(images), file) as advance, contextlib.closing(results):
            if kind == "csv":
                file.write(csv_header(min(topk, len(predictor.classes))))
            for result in results:
                if isinstance(result, Failure):
                    failed += 1
                    report_error(f"{result.path}: {result.reason}")
                else:
                    file.write(row(result))
                    done += 1
                advance()
    except KeyboardInterrupt:
        print(f"fastervit: interrupted after {done + failed} of {len(images)} images{_where(out)}", file=sys.stderr)
        return 130
    if len(images) > 1 and failed:
        report_error(f"{failed} of {len(images)} images could not be read{_where(out)}")
    elif out is not None and done:
        print(f"fastervit: {done} image{'s' if done > 1 else ''} classified{_where(out)}", file=sys.stderr)
    return 3 if failed else 0


def _row_format(out: Path | None, asked: Literal["csv", "jsonl"] | None) -> Literal["csv", "jsonl"] | None:
    """What rows are written, None for text."""
    if out is not None and out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file in it, such as {out / 'predictions.csv'}")
    if asked is not None or out is None:
        return asked
    if str(out) == "-":
        return "csv"
    if out.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"--out {out} ends in none of {', '.join(_SUFFIXES)}; give --format csv or --format jsonl")
    return _SUFFIXES[out.suffix.lower()]


def _row_writer(kind: Literal["csv", "jsonl"] | None) -> "Callable[[Prediction], str]":
    from openfastervit.inference import csv_row, jsonl_row

    return {"csv": csv_row, "jsonl": jsonl_row, None: _text}[kind]


def _text(prediction: "Prediction") -> str:
    lines = [str(prediction.path)]
    lines += [f"  {score:8.2%}  {name}" for name, score in zip(prediction.classes, prediction.scores, strict=True)]
    return "\n".join(lines) + "\n"


def _where(out: Path | None) -> str:
    return "" if out is None else f"; rows in {out}"


@contextlib.contextmanager
def _destination(out: Path | None) -> Iterator[TextIO]:
    from openfastervit.inference import growing_file

    if out is not None:
        with growing_file(out) as file:
            yield file
        return
    if hasattr(sys.stdout, "reconfigure"):  # names of files need not be text
        sys.stdout.reconfigure(errors="surrogateescape")
    yield sys.stdout


@contextlib.contextmanager
def _progress(total: int, file: TextIO) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, if that is a terminal where the rows themselves do not show the progress."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = total == 1 or not sys.stderr.isatty() or file.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=hidden, redirect_stdout=False) as progress:
        task = progress.add_task("images", total=total)
        yield lambda: progress.advance(task)
