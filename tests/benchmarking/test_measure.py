"""Measuring, in processes that are there: what they say, how they end, who takes turns with whom."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from openfastervit.benchmarking.cases import Case, Row
from openfastervit.benchmarking.measure import Plan, _Worker, measure, row_of
from openfastervit.benchmarking.status import is_out_of_memory, status_of
from openfastervit.benchmarking.subject import Called, Machine, Measured
from openfastervit.benchmarking.worker import Built
from openfastervit.inference.engines import ENGINES, EngineError, EngineKind

POCKET = {"dim": 8, "stem_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4)}
MACHINE = Machine(threads=1, warm_up_seconds=0.01)
PLAN = Plan(repeats=2, seconds=0.01)


def case(model: str = "pocket", **changes: Any) -> Case:
    values: dict[str, Any] = {"engine": "torch-folded", "precision": "fp32", "batch_size": 2, "height": 64, "width": 64}
    return Case(
        **{"model": model, "architecture": "fastervit_0", "peer": False, "options": POCKET, **values, **changes}
    )


def peer(architecture: str = "test_resnet", **changes: Any) -> Case:
    return case(architecture, architecture=architecture, peer=True, options={}, **changes)


def rows_of(cases: list[Case], machine: Machine = MACHINE, plan: Plan = PLAN, **options: Any) -> list[Row]:
    """Of each case the last row, in the order of the first ones."""
    return list({row.key: row for rows in measure(cases, machine, plan, **options) for row in rows}.values())


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_rows_hold_what_was_measured() -> None:
    first, second, third = rows_of([case(), peer(), case("single", batch_size=1)])
    for row in (first, second, third):
        assert row.status == "ok"
        assert row.repeats == 2
        assert row.threads == 1
        assert row.images_per_second_q1 <= row.images_per_second <= row.images_per_second_q3
        # Medians of calls and of repeats are of the same calls: they cannot be far apart.
        assert row.images_per_second == pytest.approx(1000 * row.batch_size / row.latency_ms_p50, rel=0.8)
        assert row.memory_kind == "process"
        assert 10 < row.memory_before_mb < row.peak_memory_mb < 3000
    assert [row.block for row in (first, second, third)] == [1, 1, 2]
    assert third.calls >= 100
    assert third.latency_ms_p99 >= third.latency_ms_p50
    assert second.peer
    assert second.top1_published is None


def test_an_image_batch_that_fits_nowhere_is_one_row_and_the_rest_go_on() -> None:
    """Random images of 4 GB, in a process that may take 2."""
    limited = Machine(threads=1, warm_up_seconds=0.01, memory_limit=2 * 10**9)
    rows = rows_of([case("before"), case("huge", batch_size=80_000), case("after")], limited)
    by_name = {row.model: row for row in rows}
    assert by_name["before"].status == by_name["after"].status == "ok"
    assert by_name["huge"].status.startswith("out of memory: ")
    assert by_name["huge"].images_per_second is None
    assert len(rows) == 3


def test_what_the_system_ends_while_it_waits_is_measured_again_alone() -> None:
    killed: list[int] = []

    def kill_one(line: str) -> None:
        if "repeat 1" in line and not killed:
            victim = max(multiprocessing.active_children(), key=lambda process: process.name)
            assert state(victim.pid) == "T", "whose turn it is not is stopped"
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)

    rows = rows_of([case("one"), case("two"), case("three")], tell=kill_one)
    assert killed
    assert sorted((row.model, row.status) for row in rows) == [("one", "ok"), ("three", "ok"), ("two", "ok")]
    assert sorted(row.block for row in rows) == [1, 1, 2]


def test_what_the_system_ends_alone_is_out_of_memory() -> None:
    def kill_it(line: str) -> None:
        if "repeat 2" in line:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    (row,) = rows_of([case()], tell=kill_it)
    assert row.status == "out of memory: the system ended the process (SIGKILL)"


def test_a_crash_is_one_row() -> None:
    def crash(line: str) -> None:
        if "repeat 2" in line:
            victim = min(multiprocessing.active_children(), key=lambda process: process.name)
            os.kill(victim.pid, signal.SIGSEGV)

    rows = rows_of([case("one"), case("two")], tell=crash)
    assert sorted(row.status for row in rows) == ["failed: the process ended by SIGSEGV", "ok"]


def test_engines_and_sizes_that_cannot_be_had_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "abacus", EngineKind("nowhere:build", ("fp32",), ("abacus_beads",), "abacus"))
    missing, precision, size, name = rows_of(
        [
            case(engine="abacus"),
            case(engine="torch-eager", precision="int8"),
            case(height=16),
            peer("test_vit", width=96),
        ]
    )
    assert missing.status == (
        "unavailable: the engine 'abacus' needs abacus_beads; install with: pip install 'openfastervit[abacus]'"
    )
    assert precision.status == "unavailable: torch-eager has fp32, bf16, fp16, not int8"
    assert size.status.startswith("unsupported at this size: ")
    assert "at least 32" in size.status
    assert name.status == "ok", name.status  # a network of one size, built for another


def test_rows_come_after_each_repeat_and_ctrl_c_leaves_no_process() -> None:
    def interrupt(line: str) -> None:
        if "repeat 2" in line:
            raise KeyboardInterrupt

    seen: list[Row] = []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(row for rows in measure([case("one"), case("two")], MACHINE, PLAN, tell=interrupt) for row in rows)
    assert [(row.model, row.status) for row in seen] == [
        ("one", "running: 1 of 2 repeats"),
        ("two", "running: 1 of 2 repeats"),
    ]
    assert all(row.images_per_second and not row.measured for row in seen)


def test_a_block_is_of_one_batch_and_precision() -> None:
    kin = [case("a"), case("b"), case("c", batch_size=3), case("d", batch_size=3, precision="bf16")]
    assert [row.block for row in rows_of(kin)] == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "out of memory: MemoryError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: DefaultCPUAllocator: "),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory: CUDA out of memory."),
        (RuntimeError("std::bad_alloc"), "out of memory: std::bad_alloc"),
        (EngineError("the engine is not here"), "unavailable: the engine is not here"),
        (RuntimeError("mat1 and mat2\nshapes"), "failed: RuntimeError: mat1 and mat2 shapes"),
    ],
)
def test_what_errors_become(error: Exception, status: str) -> None:
    assert status_of(error).startswith(status)
    assert is_out_of_memory(error) == status.startswith("out of memory")


def state(pid: int | None, seconds: float = 5) -> str:
    """A process's state, T for stopped, once it is that or after so long."""
    letter = ""
    ends = time.monotonic() + seconds
    while letter != "T" and time.monotonic() < ends:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        time.sleep(0.01)
    return letter


# --- Building several at once, and ends of the time -----------------------------------------------------------------


def test_several_are_built_at_once_and_measured_in_their_order() -> None:
    order: list[str] = []
    at_once: list[int] = []

    def note(line: str) -> None:
        order.append(line)
        at_once.append(len(multiprocessing.active_children()))

    names = ["one", "two", "three", "four"]
    cases = [case(name) for name in names] + [case("none", height=16)]
    rows = rows_of(cases, plan=Plan(repeats=2, seconds=0.01, builders=3), tell=note)
    assert {row.model: row.status.partition(":")[0] for row in rows} == {
        **dict.fromkeys(names, "ok"),
        "none": "unsupported at this size",
    }
    assert [row.model for row in rows if row.status == "ok"] == names
    building = sum(line.startswith("building") for line in order)
    assert building == 5
    assert at_once[2] >= 2, "the third began while the first two were being built"
    assert {row.block for row in rows if row.status == "ok"} == {1}


@dataclass(frozen=True)
class Sleeper(Case):
    """Never ready, or ready and never done."""

    when: str = "built"

    @contextlib.contextmanager
    def open(self, machine: Machine) -> Iterator[Called]:
        if self.when == "built":
            time.sleep(1000)
        calls = itertools.count()
        # The first call, those of warming up, the one before a repeat: then it hangs.
        yield Called(lambda: time.sleep(1000 if next(calls) > 20 else 0.001))


def sleeper(when: str) -> Sleeper:
    return Sleeper("sleeper", "fastervit_0", False, "torch-folded", "fp32", 2, 64, 64, {}, when)


def test_what_is_not_built_in_time_is_left_out() -> None:
    ready: list[str] = []
    plan = Plan(repeats=1, seconds=0.01, builders=2, built_until=time.monotonic() + 8)
    rows = rows_of([sleeper("built"), case("one")], plan=plan, before_turns=lambda: ready.append("ready"))
    assert {row.model: row.status for row in rows} == {
        "sleeper": "not measured: out of time: it was still being built",
        "one": "ok",
    }
    assert ready == ["ready"]
    (row,) = rows_of([case()], plan=Plan(built_until=0.0))
    assert row.status == "not measured: out of time: building it did not begin"


def test_at_the_end_of_the_time_rows_keep_the_repeats_that_they_have() -> None:
    ends = time.monotonic() + 8
    plan = Plan(repeats=10**6, seconds=0.5, tail=False, until=ends)
    one, two = rows_of([case("one"), case("two")], plan=plan)
    for row in (one, two):
        assert row.repeats >= 1
        assert row.status == f"running: {row.repeats} of 1000000 repeats"
    (row,) = rows_of([case()], plan=Plan(until=0.0))
    assert row.status == "not measured: out of time: no repeat was measured"


def test_a_turn_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openfastervit.benchmarking.measure.GRACE", 0.5)
    plan = Plan(repeats=3, seconds=1.0, tail=False, until=time.monotonic() + 8)
    (row,) = rows_of([sleeper("measured")], plan=plan)
    assert row.status == "not measured: out of time: its turn did not end"


def test_rates_are_those_of_each_repeat() -> None:
    seen: list[Measured] = []

    class Seen(Case):
        def measured(self, found: Measured, status: str) -> Row:
            seen.append(found)
            return super().measured(found, status)

    worker = _Worker(
        Seen("seen", "fastervit_0", False, "torch-folded", "fp32", 4, 64, 64),
        1,
        multiprocessing.current_process(),
        multiprocessing.Pipe()[0],
        Built(1.0, 1, 0, 0, 0, None, "process", {}),
        seconds=[[1.0, 3.0], [0.5], [2.0]],
    )
    row = row_of(worker, 1, PLAN)
    assert seen[0].rates == (2.0, 8.0, 2.0)
    assert row.images_per_second == 2.0
    assert worker.seconds_a_call == 1.0
