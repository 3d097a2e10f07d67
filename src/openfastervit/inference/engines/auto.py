"""``engine="auto"``: the fastest engine for a network on the machine at hand, found by measuring.

Every candidate that is installed is built, its logits are compared with the plain network's, and those that pass take
turns on the same images. The winner and the reason are kept in a file, so that the next start builds the winner alone.
"""

import gc
import hashlib
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openfastervit.atomic import write_atomically
from openfastervit.environment import hardware, versions
from openfastervit.inference.engines.engine import (
    MAX_DIFFERENCE,
    Engine,
    EngineError,
    Settings,
    difference,
    in_channels,
)
from openfastervit.inference.engines.table import ENGINES, create_engine

REPEATS = 5
"""Turns of each candidate."""
SECONDS = 0.4
"""What a turn lasts at least."""
_PACKAGES = ("openfastervit", "torch", "onnxruntime", "openvino", "tensorrt")


@dataclass(frozen=True)
class Choice:
    """What was measured, and what follows."""

    engine: str
    reason: str
    images_per_second: dict[str, float]
    """Median of the turns, by engine."""
    failures: dict[str, str]
    """Candidates that did not take part, and why."""


def candidates(settings: Settings) -> list[str]:
    """Engines that ``auto`` measures unless it is told which: all that are installed and fit, and build in seconds."""
    return [
        name
        for name, kind in ENGINES.items()
        if kind.installed()
        and kind.runs_on(settings.device)
        and kind.has(settings.precision, settings.device)
        and not kind.compiles
        and name != "torch-eager"  # the same as folded, and slower
    ]


def auto_engine(
    network: nn.Module,
    settings: Settings,
    *,
    among: Sequence[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Engine:
    """The fastest engine for a network, of those whose logits are right.

    Args:
        network: Left as it is.
        settings: Precision, size and batch that it is for.
        among: Names of engines to measure; by default what ``candidates`` says.
        cache: The file that remembers; by default ``engines.json`` in the user's cache folder, of this package.
        tell: Called with a line for each step: measuring takes seconds.

    Raises:
        EngineError: If no engine can be built, or none is right.
    """
    if among is not None and not among:
        raise EngineError("among is empty: name the engines to measure, or leave it out")
    names = list(candidates(settings) if among is None else among)
    if not names:
        raise EngineError(
            f"no engine here has precision {settings.precision!r} on {settings.device!r}; install one: "
            "pip install 'openfastervit[openvino,export]'"
        )
    file = default_cache() if cache is None else Path(cache)
    key = _key(network, settings, names)
    known = _remembered(file, key)
    if known is not None:
        engine, wrong = _built(network, known.engine, settings, *_question(network, settings))
        if engine is not None:
            tell(f"engine {known.engine}, as measured before: {known.reason}")
            return engine
        tell(f"{known.engine}, the fastest when measured before, is out ({wrong}): measuring anew")
    choice, engine = measure(network, settings, names, tell=tell)
    _remember(file, key, choice)
    tell(f"engine {choice.engine}: {choice.reason}")
    return engine


def default_cache() -> Path:
    """``engines.json`` in the user's cache folder."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "openfastervit" / "engines.json"


def measure(
    network: nn.Module,
    settings: Settings,
    names: Sequence[str],
    *,
    tell: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Choice, Engine]:
    """Build all candidates, compare their logits, let them take turns.

    Returns:
        What was found, and the winner, ready; the others are closed.

    Raises:
        EngineError: If no engine can be built, or none is right.
    """
    images, expected = _question(network, settings)
    engines: dict[str, Engine] = {}
    failures: dict[str, str] = {}
    for name in names:
        tell(f"building {name}")
        engine, wrong = _built(network, name, settings, images, expected)
        if engine is None:
            failures[name] = wrong
            tell(f"{name} is out: {wrong}")
        else:
            engines[name] = engine
    if not engines:
        told = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise EngineError(f"no engine can run this network in {settings.precision}: {told}")
    rates = _turns(engines, images, clock)
    best = max(rates, key=lambda name: rates[name])
    for name, engine in engines.items():
        if name != best:
            engine.close()
    winner = engines[best]
    engines.clear()
    gc.collect()
    order = sorted(rates, key=lambda name: -rates[name])
    reason = "images a second: " + ", ".join(f"{name} {rates[name]:.1f}" for name in order)
    reason += f" (batch {settings.batch_size}, {settings.size[0]} x {settings.size[1]}, {settings.precision})"
    return Choice(best, reason, rates, failures), winner


def _question(network: nn.Module, settings: Settings) -> tuple[Tensor, Tensor]:
    """Images and the plain network's logits."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(settings.batch_size, in_channels(network), *settings.size, generator=generator)
    if settings.calibration is not None:  # real ones tell more of int8
        images = settings.calibration[torch.arange(settings.batch_size) % len(settings.calibration)].float()
    reference = create_engine(network, "torch-eager", settings.at("fp32"))
    expected = reference(images)
    reference.close()
    return images, expected


def _built(
    network: nn.Module, name: str, settings: Settings, images: Tensor, expected: Tensor
) -> tuple[Engine | None, str]:
    """An engine whose logits are right, or None and what is wrong with it."""
    engine = None
    try:
        engine = create_engine(network, name, settings)
        apart = difference(engine(images), expected)
    except (ValueError, RuntimeError, MemoryError) as error:  # what backends raise is told, and another one taken
        wrong = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    else:
        if apart <= MAX_DIFFERENCE[settings.precision]:  # NaN is not
            return engine, ""
        wrong = f"its logits differ from the network's by {apart:.2g}"
    if engine is not None:
        engine.close()
    return None, wrong


def _turns(engines: dict[str, Engine], images: Tensor, clock: Callable[[], float]) -> dict[str, float]:
    """Median images a second of each, turn by turn: what else the machine does slows all alike."""
    calls: dict[str, int] = {}
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(REPEATS):
        for name, engine in engines.items():
            engine(images)  # threads of the one before come to rest, this one's wake up
            if name not in calls:
                calls[name] = max(1, round(SECONDS / max(_seconds(engine, images, 1, clock), 1e-6)))
            rates[name].append(len(images) * calls[name] / max(_seconds(engine, images, calls[name], clock), 1e-9))
    return {name: statistics.median(values) for name, values in rates.items()}


def _seconds(engine: Engine, images: Tensor, calls: int, clock: Callable[[], float]) -> float:
    started = clock()
    for _ in range(calls):
        engine(images)
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    return clock() - started


def _key(network: nn.Module, settings: Settings, names: Sequence[str]) -> str:
    """What a measurement is true for: the network's shape, not its weights; the settings; the machine; the versions."""
    shape = [(name, list(value.shape)) for name, value in network.state_dict().items()]
    told = {
        "network": [type(network).__name__, shape],
        "settings": {name: value for name, value in vars(settings).items() if name != "calibration"},
        "cores": settings.cores,
        "among": list(names),
        "hardware": hardware(gpus=torch.device(settings.device).type != "cpu"),
        "versions": versions(_PACKAGES),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _entries(file: Path) -> dict[str, Any]:
    """What the file remembers. A damaged or foreign one is as good as none: it can be measured again."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _remembered(file: Path, key: str) -> Choice | None:
    try:
        choice = Choice(**_entries(file)[key])
    except (KeyError, TypeError):
        return None
    return choice if choice.engine in ENGINES else None


def _remember(file: Path, key: str, choice: Choice) -> None:
    content = json.dumps({**_entries(file), key: asdict(choice)}, indent=1)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, f"{content}\n".encode())
    except OSError as error:  # a read-only home costs time at the next start, and is no reason to fail
        warnings.warn(f"the choice of engine is not remembered: {error}", stacklevel=3)
