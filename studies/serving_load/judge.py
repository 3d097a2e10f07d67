"""From what clients saw to figures, and from figures to whether they are good enough."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from studies.serving_load.client import CLOSED, NO_ANSWER, NOT_CONNECTED, Answer, Told


@dataclass(frozen=True)
class Criterion:
    """Something that has to hold."""

    text: str
    met: bool


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least ``share`` of them do not exceed; not a number where there is none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def counts(answers: Sequence[Answer]) -> dict[str, int]:
    """Answers by kind."""

    def count(*statuses: int) -> int:
        return sum(answer.status in statuses for answer in answers)

    silent = sum(answer.status == 503 and not answer.retry_after for answer in answers)
    return {
        "requests": len(answers),
        "answered_200": count(200),
        "refused_503": count(503) - silent,
        "refused_503_silent": silent,
        "other_5xx": sum(500 <= answer.status < 600 and answer.status != 503 for answer in answers),
        "other_status": sum(0 < answer.status < 500 and answer.status != 200 for answer in answers),
        "no_answer": count(NO_ANSWER),
        "closed": count(CLOSED),
        "not_connected": count(NOT_CONNECTED),
    }


def figures(told: Told, bare_rate: float, batch_s: float) -> dict[str, Any]:
    """Of a phase: rates, shares and times.

    Args:
        told: What the client saw.
        bare_rate: Images a second of the engine alone.
        batch_s: The time of its batch.
    """
    seconds = told.ended - told.started
    good = [answer for answer in told.answers if answer.status == 200]
    in_time = sum(answer.done <= told.ended for answer in good)
    offered = (len(told.answers) + told.unsent) / seconds
    p99 = percentile((answer.seconds for answer in good), 0.99)
    return {
        "seconds": seconds,
        "offered_per_second": offered,
        **counts(told.answers),
        "unsent": told.unsent,
        "answered_per_second": in_time / seconds,
        "share_of_offered": len(good) / max(1, len(told.answers) + told.unsent),
        "share_of_engine": in_time / seconds / bare_rate,
        "p50_ms": 1000 * percentile((answer.seconds for answer in good), 0.5),
        "p99_ms": 1000 * p99,
        "p99_batches": p99 / batch_s,
        "refusal_p99_ms": 1000 * percentile((a.seconds for a in told.answers if a.status == 503), 0.99),
        "client_late_p99_ms": 1000 * percentile((a.sent - a.due for a in told.answers), 0.99),
        "client_cores": told.cpu_s / seconds,
    }


def growth(samples: Sequence[float]) -> float:
    """By how much memory grew after the first fifth of a run: the median of its last tenth over that of its third."""
    tenth = max(1, len(samples) // 10)
    start = len(samples) // 5
    if len(samples) < 5:
        return math.nan
    return median(samples[-tenth:]) / median(samples[start : start + tenth]) - 1


def only_refusals(answers: Sequence[Answer], what: str = "no 5xx but 503 with Retry-After") -> Criterion:
    """The server's own errors are none."""
    found = counts(answers)
    return Criterion(what, found["other_5xx"] + found["refused_503_silent"] == 0)


def all_answered(answers: Sequence[Answer], within_s: float) -> Criterion:
    """Nobody waits in vain."""
    found = counts(answers)
    hung = found["no_answer"] + found["closed"] + found["not_connected"]
    slow = any(answer.seconds > within_s for answer in answers)
    return Criterion(f"each request answered within {within_s:g} s", not hung and not slow and bool(answers))


def back_after(answers: Sequence[Answer], moment: float) -> float:
    """Seconds from a moment to the first good answer to a request that was sent after it."""
    return (
        min((answer.done for answer in answers if answer.status == 200 and answer.sent >= moment), default=math.inf)
        - moment
    )


def verdict(criteria: Sequence[Criterion]) -> str:
    """``yes``, or ``no`` and what does not hold."""
    missed = [criterion.text for criterion in criteria if not criterion.met]
    return "yes" if not missed else f"no: {'; '.join(missed)}"
