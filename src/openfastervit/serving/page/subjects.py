"""What answers on the page: trained networks, each on an engine."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from openfastervit.inference.engines import Precision
from openfastervit.inference.images_in_memory import Answer, Model, open_model
from openfastervit.serving.page.inside import Inside, look_into

_GREY = (128, 128, 128)


@dataclass(frozen=True)
class Subject:
    """A network on an engine, as the page names it."""

    name: str
    """Which no other one has: parts of the checkpoint's path, and the engine."""
    model: Model
    inside: Inside | str
    """What its carriers look at, or why that is not shown."""

    @property
    def about(self) -> str:
        """A line below its name."""
        count = len(self.model.classes)
        return f"{self.model.task}, {count} class{'' if count == 1 else 'es'}, by {self.model.engine_name}"


@dataclass(frozen=True)
class Timed:
    """An answer, and the seconds that it took."""

    answer: Answer
    preparing: float
    """Scaling and cropping."""
    network: float


def answer(subject: Subject, image: Image.Image, *, topk: int, score_threshold: float) -> Timed:
    """Ask one network.

    Raises:
        ImageError: If the image is too thin a strip to scale.
        ValueError: If it does not fit in the device's memory.
    """
    began = time.perf_counter()
    prepared = subject.model.prepare(image)
    middle = time.perf_counter()
    (found,) = subject.model.predict([prepared], topk=topk, score_threshold=score_threshold)
    return Timed(found, middle - began, time.perf_counter() - middle)


@contextmanager
def open_subjects(
    checkpoint: Path,
    *,
    compare: Sequence[Path] = (),
    compare_engine: Sequence[str] = (),
    engine: str = "auto",
    precision: Precision = "fp32",
    device: str = "auto",
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[Subject, ...]]:
    """The checkpoint, then what it is to be compared with, open and warm.

    Args:
        checkpoint: A file, or the folder of a run.
        compare: Others, each on ``engine``.
        compare_engine: Engines that the first one runs on too.
        engine: As of ``open_model``, and so are the rest.
        precision: Of all.
        device: Of all.
        tell: Called with lines that say what takes long.

    Raises:
        FileNotFoundError, ValueError: As ``open_model``.
    """
    wanted = [(checkpoint, engine), *((checkpoint, other) for other in compare_engine)]
    wanted += [(other, engine) for other in compare]
    insides: dict[Path, Inside | str] = {}
    with ExitStack() as closing:
        subjects = []
        names = short_names([path for path, _ in wanted])
        for (path, asked), name in zip(wanted, names, strict=True):
            model = open_model(path, engine=asked, precision=precision, device=device, batch_size=1, tell=tell)
            closing.enter_context(model)
            if path not in insides:
                insides[path] = look_into(path, model.task, device)
            subjects.append(Subject(f"{name}, {model.engine_name}", model, insides[path]))
            # What an engine does but once is no part of the first visitor's time.
            answer(subjects[-1], Image.new("RGB", (64, 64), _GREY), topk=1, score_threshold=1.0)
        yield tuple(_numbered(subjects))


def short_names(paths: Iterable[Path]) -> list[str]:
    """The last part of each path, and of different ones with the same as many parts before it as tell them apart."""
    whole = [Path(os.path.abspath(path)).parts for path in paths]  # noqa: PTH100  links stay as they were given
    most = max(map(len, whole), default=1)
    for count in range(1, most + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(set(whole)):
            return names
    return ["/".join(parts) for parts in whole]


def _numbered(subjects: Sequence[Subject]) -> Iterator[Subject]:
    """The same, once more named where one is asked for twice."""
    seen: dict[str, int] = {}
    for subject in subjects:
        count = seen[subject.name] = seen.get(subject.name, 0) + 1
        yield subject if count == 1 else Subject(f"{subject.name} ({count})", subject.model, subject.inside)
