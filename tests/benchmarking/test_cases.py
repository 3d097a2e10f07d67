"""Cases and the rows of ``results.csv``."""

import csv
import io
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfastervit.benchmarking.cases import COLUMNS, plan, to_csv
from openfastervit.benchmarking.pareto import judged
from tests.benchmarking.rows import row

FIRST = (
    *("model", "engine", "precision", "batch_size", "height", "width", "images_per_second", "latency_ms_p50"),
    *("latency_ms_p99", "peak_memory_mb", "top1_published", "status"),
)


ROWS = [row("resnet50"), row("test_resnet", 5.0), row("swin_tiny", 2.0, side=384)]


def test_the_first_columns_are_those_promised() -> None:
    assert list(COLUMNS[: len(FIRST)]) == list(FIRST)
    lines = list(csv.reader(io.StringIO(to_csv([row()]))))
    assert lines[0] == list(COLUMNS)
    assert lines[1][: len(FIRST)] == [
        *("fastervit_0", "torch-eager", "fp32", "8", "224", "224", "100.00", "80.000", "", "500.00", "82.100", "ok")
    ]


@given(st.floats(1e-5, 1e6), st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=30))
def test_what_is_written_is_what_was_measured(speed: float, status: str) -> None:
    first = replace(ROWS[0], images_per_second=speed, status=status)
    rows = judged([first, *ROWS[1:]])
    lines = list(csv.DictReader(io.StringIO(to_csv(rows), newline="")))
    assert len(lines) == len(rows)
    for line, one in zip(lines, rows, strict=True):
        for name, value in asdict(one).items():
            if isinstance(value, float):
                assert float(line[name]) == pytest.approx(value, rel=1e-4)
            else:
                assert line[name] == {None: "", (bool, 1): "true", (bool, 0): "false"}.get(
                    value if value is None else (type(value), value), str(value)
                )


def test_the_plan_holds_every_combination_once_with_its_kin_beside_it() -> None:
    networks = [("fastervit_0", "fastervit_0", False), ("resnet50", "resnet50", True)]
    cases = plan(networks, ["a", "b"], ["fp32", "bf16"], [1, 8], [(224, 224), (384, 384)])
    assert len({case.key for case in cases}) == len(cases) == 32
    assert [case.model for case in cases[:2]] == ["fastervit_0", "resnet50"]
    assert len({(case.batch_size, case.precision, case.engine) for case in cases[:4]}) == 1


def test_a_networks_own_size_is_added_where_it_is_not_there() -> None:
    names = ("fastervit_0", "mobilenetv4_hybrid_large", "fastvit_sa24", "test_resnet")
    networks = [(name, name, True) for name in names]
    sizes = [(224, 224), (256, 256)]
    with_own = plan(networks, ["a"], ["fp32"], [1], sizes, published_sizes=True)
    without = plan(networks, ["a"], ["fp32"], [1], sizes)
    added = [case for case in with_own if case not in without]
    assert [(case.model, case.size) for case in added] == [("mobilenetv4_hybrid_large", (384, 384))]
