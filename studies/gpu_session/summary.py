"""What the rows come to: the goals beside what was reached, each network beside its peers, the share of the floor.

Ratios are taken repeat by repeat between rows that were measured in turns, and given with their quartiles.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openfastervit.benchmarking.timing import quartiles
from studies.gpu_session.cases import COMPILED, EAGER
from studies.gpu_session.parts import FP8, HEADLINE, LATENCY, OURS, TRAINING

LEAST_REPEATS = 3
"""For a ratio to be told; a dry run has one repeat."""
NOT_MEASURED = "not measured"
Cells = Mapping[str, Any]


@dataclass(frozen=True)
class Ratio:
    """Of images a second, over the repeats."""

    median: float
    low: float
    high: float
    repeats: int


def ratio(ours: Cells, theirs: Cells, *, least: int = LEAST_REPEATS) -> Ratio | None:
    """How many times as fast one row is as another; None where they were not measured in turns, often enough."""
    if ours["part"] != theirs["part"] or ours["block"] is None or ours["block"] != theirs["block"]:
        return None
    ratios = [one / other for one, other in zip(ours["rates"], theirs["rates"], strict=False)]
    if len(ratios) < least:
        return None
    return Ratio(statistics.median(ratios), *quartiles(ratios), len(ratios))


def best(rows: Iterable[Cells], **wanted: Any) -> Cells | None:
    """The fastest of the rows that have these cells; a tuple stands for any of its values."""
    found = [row for row in _having(rows, wanted) if row["images_per_second"] is not None]
    return max(found, key=lambda row: row["images_per_second"], default=None)


def goals(inference: Sequence[Cells], training: Sequence[Cells], *, least: int = LEAST_REPEATS) -> list[dict[str, Any]]:
    """Each goal, and what was reached."""
    peer = next((row["network"] for row in inference if row["peer"]), "")
    first = next((row["network"] for row in inference if not row["peer"] and row["network"].endswith("_0")), "")
    ours: dict[str, Any] = {"network": first, "way": OURS}
    found = [
        _goal(f"{first}, batch 128: over eager under autocast", 3.0, inference, HEADLINE, ours, least, way=EAGER),
        _goal(f"{first}, batch 128: over torch.compile of it", 1.4, inference, HEADLINE, ours, least, way=COMPILED),
        _goal(
            *(f"{first}, batch 128: over compiled {peer}", 2.2, inference, HEADLINE, ours, least),
            network=peer,
            way=COMPILED,
        ),
        _goal(f"{first}, batch 1: over eager, in latency", 5.0, inference, LATENCY, ours, least, way=EAGER),
    ]
    for name in dict.fromkeys(row["network"] for row in training):
        goal = 1.8 if name == first else None
        steps = {"network": name, "way": ("kernels", "kernels-compiled")}
        what = f"{name}: a step of training, over eager"
        found.append(_goal(what, goal, training, TRAINING, steps, least, way="eager"))
    fp8 = [row for row in inference if row["part"] == FP8]
    for name in dict.fromkeys(row["network"] for row in fp8):
        half = next(row["precision"] for row in fp8 if row["precision"] != "fp8")
        wanted = {"network": name, "way": OURS, "precision": "fp8"}
        found.append(_goal(f"{name}: fp8 over {half}", None, inference, FP8, wanted, least, precision=half))
    return found


def beside_peers(rows: Sequence[Cells], *, least: int = LEAST_REPEATS) -> list[dict[str, Any]]:
    """Each FasterViT beside each peer of equal or better published top-1, at the first batch.

    Of a peer its fastest way to run counts, in the part in which it was fastest; of ours likewise, in the same part.
    """
    measured = [row for row in rows if row["part"].startswith(HEADLINE) and row["top1_published"] is not None]
    found = []
    for name in dict.fromkeys(row["network"] for row in measured if not row["peer"]):
        own = next(row["top1_published"] for row in measured if row["network"] == name)
        for peer in dict.fromkeys(row["network"] for row in measured if row["peer"] and row["top1_published"] >= own):
            theirs = best(measured, network=peer)
            ours = None if theirs is None else best(measured, network=name, way=OURS, part=theirs["part"])
            times = None if theirs is None or ours is None else ratio(ours, theirs, least=least)
            found.append(
                {
                    "network": name,
                    "top1": own,
                    "peer": peer,
                    "peer_top1": next(row["top1_published"] for row in measured if row["network"] == peer),
                    "way": "" if times is None or ours is None else ours["way"],
                    "peer_way": "" if times is None or theirs is None else theirs["way"],
                    "part": "" if theirs is None else theirs["part"],
                    **_told(times),
                    "status": NOT_MEASURED if times is None else "faster" if times.low > 1 else "not faster",
                }
            )
    return found


def verdicts(compared: Sequence[Cells]) -> list[str]:
    """A line for each network: above all its peers, or which wins, and by how much."""
    lines = []
    for name in dict.fromkeys(row["network"] for row in compared):
        mine = [row for row in compared if row["network"] == name]
        wins = [row for row in mine if row["status"] == "not faster"]
        missing = [row["peer"] for row in mine if row["status"] == NOT_MEASURED]
        if wins:
            told = ", ".join(f"{row['peer']} ({1 / row['ratio']:.2f} times as fast)" for row in wins)
            line = f"not above {told}"
        elif len(missing) == len(mine):
            line = NOT_MEASURED
        else:
            line = f"above all {len(mine) - len(missing)} measured peers of equal or better top-1"
        if missing and len(missing) < len(mine):
            line += f"; not measured: {', '.join(missing)}"
        lines.append(f"{name}: {line}")
    return lines


def shares(rows: Sequence[Cells], floors: Sequence[Cells]) -> list[dict[str, Any]]:
    """The floor of a batch beside what the fastest way took."""
    found = []
    for floor in floors:
        if floor.get("stage") != "all":
            continue
        wanted = {"network": floor["network"], "side": floor["side"], "batch_size": floor["batch_size"], "way": OURS}
        row = best(rows, **wanted)
        measured = None if row is None else 1000 * row["batch_size"] / row["images_per_second"]
        found.append(
            {
                "network": floor["network"],
                "batch_size": floor["batch_size"],
                "side": floor["side"],
                "floor_ms": floor["floor_ms"],
                "way": "" if row is None else row["way"],
                "measured_ms": measured,
                "share": None if measured is None else floor["floor_ms"] / measured,
                "status": NOT_MEASURED if row is None else "ok",
            }
        )
    return found


def _goal(
    what: str,
    goal: float | None,
    rows: Sequence[Cells],
    part: str,
    ours: Mapping[str, Any],
    least: int,
    **base: Any,
) -> dict[str, Any]:
    one = best(rows, part=part, **ours)
    other = best(rows, part=part, **{"network": ours["network"], **base})
    times = None if one is None or other is None else ratio(one, other, least=least)
    reached = "" if goal is None else "reached" if times is not None and times.median >= goal else "not reached"
    return {
        "what": what,
        "goal": goal,
        "way": "" if times is None or one is None else one["way"],
        **_told(times),
        "status": NOT_MEASURED if times is None else reached or "ok",
    }


def _told(times: Ratio | None) -> dict[str, Any]:
    if times is None:
        return {"ratio": None, "ratio_q1": None, "ratio_q3": None, "repeats": 0}
    return {"ratio": times.median, "ratio_q1": times.low, "ratio_q3": times.high, "repeats": times.repeats}


def _having(rows: Iterable[Cells], wanted: Mapping[str, Any]) -> list[Cells]:
    return [
        row
        for row in rows
        if all(row[name] in value if isinstance(value, tuple) else row[name] == value for name, value in wanted.items())
    ]
