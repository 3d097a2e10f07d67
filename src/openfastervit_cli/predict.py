"""``fastervit predict``."""

import contextlib
import hashlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

from openfastervit_cli.parser import report_error
from openfastervit_cli.progress import progress

if TYPE_CHECKING:
    from openfastervit.inference import ImageList, Prediction, Predictor

_MEASURE_FROM = 2000
"""Images for which it pays to measure the engines first."""
_FEW = "torch-folded"
"""The engine for fewer: it is ready at once."""
_SUFFIXES: dict[str, Literal["csv", "jsonl", "parquet"]] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


def predict(
    input: str,
    *,
    checkpoint: Path,
    model: str | None = None,
    topk: int = 5,
    out: str | None = None,
    format: Literal["csv", "jsonl", "parquet"] | None = None,
    overwrite: bool = False,
    batch_size: int = 32,
    device: str = "auto",
    engine: str = "auto",
    precision: Literal["fp32", "bf16", "fp16", "fp8", "int8"] = "fp32",
    calibration: Path | None = None,
    workers: int | None = None,
    img_size: list[int] | None = None,
    cluster: str | None = None,
    replicas: int | None = None,
    shard_size: int | None = None,
) -> int:
    """Classify an image, or all images in a folder.

    Prints the best classes of each image, or with --out or --format writes one row an image: CSV or Parquet with the
    columns image, class_1, index_1, score_1, class_2, ...; or JSON lines, {"image": ..., "predictions": [{"class": ...,
    "index": ..., "score": ...}, ...]}. Scores are probabilities. An image that cannot be read is named on stderr and
    has no row; the others go on, and the exit code is 3. Whatever ends the command before it is done, with --out the
    same command goes on where it was; where the file is complete, it does nothing.

    With --cluster, Ray Data does it on any number of machines: images or tar files of WebDataset's, from a disk or any
    store that fsspec knows, to a folder of Parquet files, one for each shard.

    Args:
        input: An image, or a folder: all images in it and its subfolders, sorted by name. With --cluster also tar files
            of WebDataset's (a folder, a file, a pattern), and URLs of fsspec's.
        checkpoint: Weights, as safetensors or torch file, in any layout; or an exported network: .onnx, .xml, .pt2.
        model: Name of the network, where the checkpoint does not tell it.
        topk: Classes shown for each image.
        out: File for the rows, '-' for standard output. It appears when complete. With --cluster a folder, or its URL.
        format: Of the rows; by default what the suffix of --out says.
        overwrite: Begin with the first image, and replace a file that is there.
        batch_size: Images the network takes at once.
        device: cpu, cuda, cuda:1, mps; auto takes the best there is.
        engine: What runs the network: torch-folded, openvino, ...; auto measures which is fastest here, where there are
            2000 images or more, and remembers it.
        precision: Of the engine's products.
        calibration: A folder of images that int8 takes its ranges from; by default 300 of the input's.
        workers: Threads that decode images; by default one for each processor, up to 16.
        img_size: Side, or height and width, that images are scaled to; by default the checkpoint's.
        cluster: Address of a cluster of Ray's: ray://host:10001, host:6379 or auto on one of its nodes, or local to
            start Ray on this machine.
        replicas: Engines at work at once on the cluster; by default one for each GPU, or each processor.
        shard_size: Images of a folder that are one file of rows on the cluster; by default 10000.
    """
    if cluster is not None:
        from openfastervit_cli.predict_cluster import predict_on_cluster

        return predict_on_cluster(
            input,
            cluster,
            _files(checkpoint),
            _digest(checkpoint),
            out=out,
            format=format,
            calibration=calibration,
            model=model,
            img_size=img_size,
            precision=precision,
            topk=topk,
            batch_size=batch_size,
            device=device,
            engine=engine,
            replicas=replicas,
            workers=workers,
            overwrite=overwrite,
            **({} if shard_size is None else {"shard_size": shard_size}),
        )
    if replicas is not None or shard_size is not None:
        raise ValueError("--replicas and --shard-size are for a cluster: --cluster ADDRESS")
    return _predict_here(
        input,
        checkpoint=checkpoint,
        model=model,
        topk=topk,
        out=None if out is None else Path(out),
        format=format,
        overwrite=overwrite,
        batch_size=batch_size,
        device=device,
        engine=engine,
        precision=precision,
        calibration=calibration,
        workers=workers,
        img_size=img_size,
    )


def _predict_here(
    input: str,
    *,
    checkpoint: Path,
    model: str | None,
    topk: int,
    out: Path | None,
    format: Literal["csv", "jsonl", "parquet"] | None,
    overwrite: bool,
    batch_size: int,
    device: str,
    engine: str,
    precision: Literal["fp32", "bf16", "fp16", "fp8", "int8"],
    calibration: Path | None,
    workers: int | None,
    img_size: list[int] | None,
) -> int:
    """``predict`` on this machine."""
    kind = _row_format(out, format)
    if str(out) == "-":
        out = None
    plain = out is not None and not (out.exists() and not out.is_file())
    if kind == "parquet" and not plain:
        raise ValueError(f"Parquet cannot be written to {out or 'standard output'}; name a file: --out FILE.parquet")
    if overwrite and not plain:
        raise ValueError("--overwrite is for a file: --out FILE")
    if calibration is not None and precision != "int8":
        raise ValueError(f"--calibration is for --precision int8, not {precision}")
    from openfastervit.data.images import iterate_images
    from openfastervit.inference import FORMATS, Format, ImageList, Job, Predictor
    from openfastervit.inference.engines import ENGINES
    from openfastervit.inference.parquet import require_pyarrow
    from openfastervit.inference.predictor import CALIBRATION_IMAGES, check_numbers, find_device

    if kind == "parquet":
        require_pyarrow()
    check_numbers(topk=topk, batch_size=batch_size, workers=workers)
    with contextlib.ExitStack() as closing:
        images = closing.enter_context(ImageList(iterate_images(input)))
        calibrating = images if precision == "int8" else None
        if calibration is not None:
            calibrating = closing.enter_context(ImageList(iterate_images(calibration)))
        job = None
        if plain:
            assert out is not None
            settings = {
                "checkpoint": _digest(checkpoint),
                "model": model,
                "images": len(images),
                "paths": images.digest,
                "img_size": img_size,
                "topk": topk,
                "format": kind,
                "batch_size": batch_size,
                "device": find_device(device).type,
                "engine": engine,
                "precision": precision,
                "calibration": None if calibrating is None else calibrating.digest,
            }
            job = Job(out, settings, _versions())
        if job is not None and not overwrite:
            finished = job.look()
            if finished is not None:
                _report(job.failures())
                return _sum_up(finished.images, finished.unreadable, out, "classified already")
            engine = job.chosen().get("engine", engine)
        if engine == "auto" and len(images) < _MEASURE_FROM and precision in ENGINES[_FEW].precisions:
            engine = _FEW
        predictor = closing.enter_context(
            Predictor.from_checkpoint(
                checkpoint,
                model,
                img_size=img_size,
                device=device,
                engine=engine,
                precision=precision,
                batch_size=batch_size,
                calibration=None if calibrating is None else calibrating.spread(CALIBRATION_IMAGES),
                tell=lambda line: print(f"fastervit: {line}", file=sys.stderr),
            )
        )
        form = FORMATS[kind] if kind else Format(lambda topk: b"", _text)
        header = form.header(min(topk, len(predictor.classes)))
        rows: _Rows
        if job is None:
            rows = closing.enter_context(_printed(out, header))
        else:
            chosen = {"engine": predictor.engine.name}
            rows = closing.enter_context(
                job.begin(header=header, chosen=chosen, convert=form.convert, overwrite=overwrite)
            )
        # A bar where nothing else moves on the screen.
        hidden = len(images) == 1 or (out is None and sys.stdout.isatty())
        try:
            _classify(
                predictor,
                images,
                rows,
                form.row,
                topk=topk,
                batch_size=batch_size,
                workers=workers,
                hidden=hidden,
            )
        except KeyboardInterrupt:
            again = "without --overwrite " if overwrite else ""
            goes_on = f"; the same command {again}goes on from there" if job is not None and rows.done else ""
            print(f"fastervit: interrupted after {rows.done} of {len(images)} images{goes_on}", file=sys.stderr)
            return 130
        return _sum_up(len(images), rows.failed, out)


class _Rows(Protocol):
    """Where rows go: a file that can be gone on with (``GrowingRows``), or a stream."""

    @property
    def done(self) -> int: ...

    @property
    def failed(self) -> int: ...

    def failures(self) -> Iterable[tuple[str, str]]: ...

    def add(self, row: bytes) -> None: ...

    def fail(self, image: str, reason: str) -> None: ...

    def mark(self, images: int) -> None: ...

    def finish(self, images: int) -> None: ...


class _Printed:
    """Rows on standard output, or in what is no plain file, such as a named pipe."""

    def __init__(self, file: TextIO, header: bytes) -> None:
        self.done = self.failed = 0
        self._file = file
        if header:
            self.add(header)

    def failures(self) -> tuple[()]:
        return ()

    def add(self, row: bytes) -> None:
        self._file.write(row.decode("utf-8", "surrogateescape"))

    def fail(self, image: str, reason: str) -> None:
        self.failed += 1

    def mark(self, images: int) -> None:
        self.done = images
        self._file.flush()

    finish = mark


@contextlib.contextmanager
def _printed(out: Path | None, header: bytes) -> Iterator[_Printed]:
    if out is not None:
        with out.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield _Printed(file, header)
        return
    if hasattr(sys.stdout, "reconfigure"):  # names of files need not be text
        sys.stdout.reconfigure(errors="surrogateescape")
    yield _Printed(sys.stdout, header)


def _classify(
    predictor: "Predictor",
    images: "ImageList",
    rows: _Rows,
    row: "Callable[[Prediction], bytes]",
    *,
    topk: int,
    batch_size: int,
    workers: int | None,
    hidden: bool,
) -> None:
    """The images that are not done yet, each to its row, in order."""
    from openfastervit.inference import Failure

    if rows.done:
        print(f"fastervit: going on after {rows.done} of {len(images)} images", file=sys.stderr)
    _report(rows.failures())
    results = predictor.predict(images.after(rows.done), topk=topk, batch_size=batch_size, workers=workers)
    with progress(len(images), done=rows.done, hidden=hidden) as advance, contextlib.closing(results):
        for place, result in enumerate(results, rows.done + 1):
            if isinstance(result, Failure):
                _report([(str(result.path), result.reason)])
                rows.fail(str(result.path), result.reason)
            else:
                rows.add(row(result))
            advance()
            if place % batch_size == 0:
                rows.mark(place)
    rows.finish(len(images))


def _row_format(
    out: Path | None, asked: Literal["csv", "jsonl", "parquet"] | None
) -> Literal["csv", "jsonl", "parquet"] | None:
    """What rows are written, None for text."""
    if out is not None and out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file in it, such as {out / 'predictions.csv'}")
    if asked is not None or out is None:
        return asked
    if str(out) == "-":
        return "csv"
    if out.suffix.lower() not in _SUFFIXES:
        formats = " or ".join(f"--format {name}" for name in dict.fromkeys(_SUFFIXES.values()))
        raise ValueError(f"--out {out} ends in none of {', '.join(_SUFFIXES)}; give {formats}")
    return _SUFFIXES[out.suffix.lower()]


def _text(prediction: "Prediction") -> bytes:
    from openfastervit.inference.output import encoded

    lines = [str(prediction.path)]
    lines += [f"  {score:8.2%}  {name}" for name, score in zip(prediction.classes, prediction.scores, strict=True)]
    return encoded("\n".join(lines) + "\n")


def _report(failures: Iterable[tuple[str, str]]) -> None:
    """A line on stderr for each image that cannot be read."""
    for image, reason in failures:
        report_error(f"{image}: {reason}")


def _sum_up(images: int, failed: int, out: Path | None, what: str = "classified") -> int:
    """The last line on stderr, and the exit code. Of one image that failed all is said."""
    where = "" if out is None else f"; rows in {out}"
    if failed and images > 1:
        report_error(f"{failed} of {images} images could not be read{where}")
    elif out is not None and not failed:
        print(f"fastervit: {images} image{'s' if images > 1 else ''} {what}{where}", file=sys.stderr)
    return 3 if failed else 0


def _files(checkpoint: Path) -> list[Path]:
    """A checkpoint's file, and weights that lie beside: those of OpenVINO's files, and those of large ONNX files."""
    beside = {".xml": checkpoint.with_suffix(".bin"), ".onnx": checkpoint.with_name(f"{checkpoint.name}.data")}
    weights = beside.get(checkpoint.suffix.lower())
    return [checkpoint, weights] if weights is not None and weights.is_file() else [checkpoint]


def _digest(checkpoint: Path) -> str:
    """A checkpoint's digest: its name may stay when training writes a better one."""
    from openfastervit.models.checkpoints import read_checkpoint

    if not checkpoint.is_file():
        read_checkpoint(checkpoint)  # tells what is wrong with it
    digest = hashlib.sha256()
    for path in _files(checkpoint):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("openfastervit", "torch")}
