"""The session for GPUs: its dry run from end to end, and its parts one by one."""

import csv
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import openfastervit
from openfastervit.benchmarking import multiply_adds
from openfastervit.benchmarking.published import published_figures
from openfastervit.inference.fold import fold
from studies.gpu_session import ceilings, checks, summary
from studies.gpu_session.apart import Cells, Job, run_apart
from studies.gpu_session.floor import Product, floor, products, products_of
from studies.gpu_session.parts import FULL, HEADLINE, LATENCY, TRAINING, parts
from studies.gpu_session.session import Session
from studies.gpu_session.tables import Tables
from tests.conftest import REPOSITORY
from tests.networks import tiny


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- The whole ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_dry_run(tmp_path: Path) -> None:
    """As a user gives it, but for ``--dry-run``: every table has rows, and every row says that it means nothing."""
    out = tmp_path / "gpu"
    command = [sys.executable, "-m", "studies.gpu_session", "--out", str(out), "--dry-run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("A dry run: no figure means anything.")
    names = ("hardware", "checks", "ceilings", "floors", "inference", "training", "goals", "shares")
    tables = {name: rows_of(out / f"{name}.csv") for name in names}
    for name, rows in tables.items():
        assert rows, name
        for row in rows:
            assert row["status"].startswith("dry run"), name
            assert row["processor"]
            assert row["torch"]
            assert row["command"] == "python -m studies.gpu_session --out OUT --dry-run"
    for name in ("checks", "ceilings", "inference", "training"):
        assert {row["status"] for row in tables[name]} == {"dry run: ok"}, name
    assert {row["kernel"] for row in tables["checks"]} == {
        checks.ATTENTION,
        checks.BACKWARD,
        checks.LINEAR,
        checks.CONVOLUTION,
    }
    assert {row["way"] for row in tables["inference"]} == {"eager", "compiled", "torch-folded", "torch-kernels"}
    assert {row["way"] for row in tables["training"]} == {"eager", "compiled", "kernels", "kernels-compiled"}
    assert {row["precision"] for row in tables["inference"] if row["part"] == "fp8"} == {"bf16", "fp8"}
    assert all(float(row["ratio"]) > 0 for row in tables["goals"])
    for row in tables["inference"]:
        assert float(row["rates"]) == float(row["images_per_second"])
    moments = [row["moment"] for row in tables["hardware"]]
    assert (moments[0], moments[-1]) == ("start", "end")


def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no GPU here; --dry-run"):
        Session(tmp_path, "cuda", seconds=540, started=0.0, only=None, dry=False)
    with pytest.raises(ValueError, match="--parts nothing: there is no such part; there is 'batch 128'"):
        Session(tmp_path, "cpu", seconds=540, started=0.0, only=["nothing"], dry=True)
    (tmp_path / "inference.csv").touch()
    with pytest.raises(ValueError, match="holds tables already"):
        Session(tmp_path, "cpu", seconds=540, started=0.0, only=None, dry=True)


def test_what_time_does_not_suffice_for_has_rows_that_say_so(tmp_path: Path) -> None:
    """Begun so long ago that all of its time is over."""
    session = Session(tmp_path / "gpu", "cpu", seconds=60, started=time.monotonic() - 60, only=None, dry=True)
    assert session.run() == 0
    for name, kind in (("inference", "dry run: not measured: out of time"), ("checks", "dry run: not measured")):
        rows = rows_of(tmp_path / "gpu" / f"{name}.csv")
        assert rows
        assert all(row["status"].startswith(kind) for row in rows)
    assert {row["status"] for row in rows_of(tmp_path / "gpu" / "goals.csv")} == {"dry run: not measured"}


def test_ctrl_c_keeps_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("studies.gpu_session.session.measure", interrupted)
    session = Session(tmp_path, "cpu", seconds=540, started=time.monotonic(), only=[HEADLINE], dry=True)
    assert session.run() == 130
    assert {row["status"] for row in rows_of(tmp_path / "ceilings.csv")} == {"dry run: ok"}
    rows = rows_of(tmp_path / "inference.csv")
    assert {row["status"] for row in rows} == {"dry run: not measured: its part did not begin"}


def test_the_whole_session_measures_what_it_is_for() -> None:
    found = parts(FULL)
    entries = [entry for part in found for entry in part.entries]
    assert len({entry.key for entry in entries}) == len(entries)
    seen = {(entry.network, entry.way, entry.batch_size, entry.side) for entry in entries}
    for network, batch, way in itertools.product(
        [f"fastervit_{i}" for i in range(5)], (1, 8, 128, 256), ("eager", "torch-kernels", "torch-graphed")
    ):
        assert (network, way, batch, 224) in seen
        assert (network, "compiled", 128, 224) in seen
    peers = {entry.network for entry in entries if entry.peer}
    assert peers == {
        *("convnext_tiny", "convnext_small", "convnext_base", "swin_tiny_patch4_window7_224"),
        *("swin_small_patch4_window7_224", "efficientvit_b3", "efficientvit_l1", "efficientvit_l2", "resnet50"),
    }
    for network, batch, way in itertools.product(peers, (1, 8, 128, 256), ("eager", "compiled")):
        assert (network, way, batch, 224) in seen
    for network, (side, batch) in itertools.product(("fastervit_0", "fastervit_2"), FULL.large.items()):
        assert (network, "compiled", batch, side) in seen
    assert FULL.large.keys() == {384, 768, 1024}
    steps = {(entry.network, entry.way) for part in found if part.name == TRAINING for entry in part.entries}
    assert steps == set(
        itertools.product(("fastervit_0", "fastervit_2"), ("eager", "compiled", "kernels", "kernels-compiled"))
    )
    assert [part.name for part in found[:3]] == [HEADLINE, LATENCY, TRAINING]
    for entry in entries:
        assert entry.unavailable() is None, entry
    top1 = {figure.model: figure.top1 for figure in published_figures() if figure.size == 224}
    for entry in found[0].entries:
        assert entry.unmeasured("").top1_published == top1[entry.network]


# --- Checks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["linear", "convolution"])
@pytest.mark.parametrize(
    "spoil",
    [lambda out: out * (1 + 1e-4), lambda out: out.index_fill(0, torch.tensor([0]), torch.nan)],
    ids=["wrong by a little", "unwritten"],
)
def test_a_kernel_that_is_wrong_fails(monkeypatch: pytest.MonkeyPatch, kernel: str, spoil: Any) -> None:
    module = pytest.importorskip(f"openfastervit.kernels.{kernel}")
    reference = getattr(module, f"{kernel}_reference")
    (check, *_) = [one for one in checks.checks(small=True)["all"] if (one.kernel, one.dtype) == (kernel, "fp32")]
    with torch.random.fork_rng():
        monkeypatch.setattr(module, kernel, reference)
        assert _checked(check)["status"] == "ok"
        monkeypatch.setattr(module, kernel, lambda *args, **options: spoil(reference(*args, **options)))
        assert _checked(check)["status"] == "failed: the error is above the bound"


def _checked(check: checks.Check) -> dict[str, Any]:
    try:
        (row,) = checks.make(check, "cpu")
    finally:
        torch.use_deterministic_algorithms(False)
    assert (row["kernel"], row["dtype"], row["shape"]) == (check.kernel, check.dtype, check.shape)
    return row


def test_checks_cover_the_family() -> None:
    every = [check for group in checks.checks(small=False).values() for check in group]
    for kernel, dtype in itertools.product((checks.ATTENTION, checks.BACKWARD), ("fp32", "bf16", "fp16")):
        values = [check.values for check in every if (check.kernel, check.dtype) == (kernel, dtype)]
        tokens = {one["carrier_size"] ** 2 + one["window"][0] * one["window"][1] for one in values}
        assert {16, 49, 53, 144} <= tokens
        assert {32, 40, 48, 49, 64} <= {one["width"] for one in values}
    # Heads of the family, counted in the networks themselves.
    for i in range(5):
        with torch.device("meta"):
            network = openfastervit.create_model(f"fastervit_{i}")
        attention = network.stages[2].attention.blocks[0].window.attn
        shape = (attention.num_heads, attention.proj.in_features // attention.num_heads)
        assert shape in {(check.values["heads"], check.values["width"]) for check in every if "heads" in check.values}


# --- Processes of their own -----------------------------------------------------------------------------------------


def _item(item: str, device: str) -> Sequence[Cells]:
    if item == "crash":
        os._exit(3)
    if item == "spoilt":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if item == "hang":
        time.sleep(1000)
    return [{"item": item, "process": os.getpid(), "status": "ok"}]


def _labelled(item: str) -> Cells:
    return {"item": item}


def _run(items: Sequence[str], device: str = "cpu", seconds: float = 60.0) -> list[Cells]:
    found: list[Cells] = []
    until = time.monotonic() + seconds
    run_apart(
        [Job("job", _item, _labelled, items)],
        device,
        lambda job, rows: found.extend(rows),
        until=lambda: until,
        stopped=threading.Event(),
    )
    return found


def test_what_crashes_is_one_row_and_the_rest_goes_on_elsewhere() -> None:
    first, crash, second, spoilt, third = _run(["first", "crash", "second", "spoilt", "third"], "cuda")
    assert crash == {"item": "crash", "status": "failed: the process ended with exit code 3"}
    assert spoilt["status"].startswith("failed: RuntimeError: CUDA error")
    assert len({row["process"] for row in (first, second, third)}) == 3, "an error of CUDA spoils its process"
    first, failed, second = _run(["first", "spoilt", "second"], "cpu")
    assert failed["status"].startswith("failed: ")
    assert first["process"] == second["process"]


def test_what_is_late_has_a_row() -> None:
    first, hang, last = _run(["first", "hang", "last"], seconds=8.0)
    assert first["status"] == "ok"
    assert hang == {"item": "hang", "status": "not measured: out of time"}
    assert last == {"item": "last", "status": "not measured: out of time"}


def test_tables_are_whole_after_each_row(tmp_path: Path) -> None:
    tables = Tables(tmp_path / "new", {"gpu": "none"}, dry=False)
    tables.add("rates", [{"name": "one", "rate": None, "status": "running"}], ["one"])
    tables.add("rates", [{"name": "two", "rate": (1.5, 2.5), "status": "ok"}], ["two"])
    tables.add("rates", [{"name": "one", "rate": 123456.7, "status": "ok"}], ["one"])
    assert rows_of(tmp_path / "new" / "rates.csv") == [
        {"name": "one", "rate": "123457", "status": "ok", "gpu": "none"},
        {"name": "two", "rate": "1.5 2.5", "status": "ok", "gpu": "none"},
    ]


# --- Ceilings and floor ---------------------------------------------------------------------------------------------


def test_ceilings_count_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "repeats", lambda call, count, device: call() is not None and [0.5] * count)
    rates = [
        ceilings.make(ceilings.Ceiling(*what, repeats=3), "cpu")[0]
        for what in (
            ("copy", "bf16", (1000,)),
            ("linear", "fp32", (10, 20, 30)),
            ("convolution", "fp32", (2, 3, 4, 5, 6)),
        )
    ]
    assert float(rates[0]["gbyte_per_second"]) == pytest.approx(2 * 1000 / 0.5 / 1e9)
    assert float(rates[1]["tflop_per_second"]) == pytest.approx(2 * 10 * 20 * 30 / 0.5 / 1e12)
    assert float(rates[2]["tflop_per_second"]) == pytest.approx(2 * 2 * 5 * 6 * 4 * 3 * 9 / 0.5 / 1e12)


def test_products_counted_by_hand() -> None:
    """A network whose stage of convolutions and whose head are counted on paper, at 64 x 64, two images."""
    model = tiny(dim=16, stem_dim=8, depths=(1, 1, 1, 1), num_classes=10).eval()
    found = products(fold(model, 64), 64, 2)
    by_stage = {
        stage: [product for product in found if product.stage == stage]
        for stage in ("stem", "stage 0", "stage 1", "head")
    }
    # 3 -> 8 channels at 32 x 32, 8 -> 16 at 16 x 16, each 3 x 3 with a bias.
    assert by_stage["stem"] == [
        Product("stem", 2 * 32 * 32 * 8 * 27, 2 * 3 * 64 * 64 + 8 * 27 + 8 + 2 * 8 * 32 * 32),
        Product("stem", 2 * 16 * 16 * 16 * 72, 2 * 8 * 32 * 32 + 16 * 72 + 16 + 2 * 16 * 16 * 16),
    ]
    values = 2 * (2 * 16 * 16 * 16) + 16 * 144 + 16
    assert by_stage["stage 0"] == [Product("stage 0", 2 * 16 * 16 * 16 * 144, values)] * 2
    # The strided convolution has no bias.
    assert by_stage["stage 1"][0].multiply_adds == 2 * 8 * 8 * 32 * 144
    assert by_stage["stage 1"][0].values == 2 * 16 * 16 * 16 + 32 * 144 + 2 * 32 * 8 * 8
    assert by_stage["head"] == [Product("head", 2 * 128 * 10, 2 * 128 + 1280 + 10 + 20)]


@pytest.mark.parametrize("name", ["fastervit_0", "fastervit_3"])
def test_no_product_is_left_out(name: str) -> None:
    """Torch's own counter of operations finds as many, attention included."""
    options = {"dim": 16, "stem_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 4)}
    found = products_of(name, 128, 3, options)
    network = fold(openfastervit.create_model(name, **options).eval(), 128, head_multiple=1)
    assert sum(product.multiply_adds for product in found) == multiply_adds(network, 128, 128, batch=3)
    (attention, *_) = [product for product in found if product.stage == "stage 3"][2:]
    # 4 x 4 tokens are padded to a window of 49: queries, keys, values, result of 128 channels; the bias of 4 heads.
    assert attention.multiply_adds == 2 * 3 * 49 * 49 * 128
    assert attention.values == 4 * 3 * 49 * 128 + 4 * 49 * 49


def test_the_floor_takes_the_longer_of_both() -> None:
    found = [Product("stem", 500, 10), Product("stem", 5, 1000), Product("head", 50, 100)]
    stem, head = floor(found, flop_per_second=1000.0, bytes_per_second=2000.0)
    assert (stem.stage, stem.products, stem.multiply_adds, stem.bytes) == ("stem", 2, 505, 2020)
    assert stem.compute_ms == pytest.approx(1000 * 1.01)
    assert stem.memory_ms == pytest.approx(1000 * 1.01)
    assert stem.floor_ms == pytest.approx(1000 * (1.0 + 1.0))
    assert (head.compute_ms, head.memory_ms, head.floor_ms) == pytest.approx((100, 100, 100))


# --- What it comes to -----------------------------------------------------------------------------------------------


def row(network: str, way: str, rates: Sequence[float], **changes: Any) -> dict[str, Any]:
    cells: dict[str, Any] = {
        "part": HEADLINE,
        "network": network,
        "way": way,
        "peer": not network.startswith("fastervit"),
        "precision": "bf16",
        "batch_size": 128,
        "side": 224,
        "images_per_second": sorted(rates)[len(rates) // 2] if rates else None,
        "rates": tuple(rates),
        "block": 1 if rates else None,
        "top1_published": 82.1,
    }
    return {**cells, **changes}


def test_ratios_are_of_the_same_repeat() -> None:
    """A clock that drifts by a third leaves the ratio alone."""
    ours, theirs = (row("a", "w", [30, 20, 25, 28, 22]), row("b", "w", [10, 6.666666, 8.333333, 9.333333, 7.333333]))
    times = summary.ratio(ours, theirs)
    assert times is not None
    assert (times.median, times.low, times.high) == pytest.approx((3, 3, 3), rel=1e-5)
    assert summary.ratio(ours, {**theirs, "block": 2}) is None
    assert summary.ratio(ours, {**theirs, "part": LATENCY}) is None
    assert summary.ratio(ours, row("b", "w", [10, 10])) is None, "too few"
    assert summary.ratio(ours, row("b", "w", [])) is None


def test_goals() -> None:
    rows = [
        row("fastervit_0", "eager", [100, 100, 100]),
        row("fastervit_0", "compiled", [250, 250, 250]),
        row("fastervit_0", "torch-graphed", [290, 290, 290]),
        row("fastervit_0", "torch-kernels", [310, 320, 330]),
        row("convnext_tiny", "eager", [90, 90, 90]),
        row("convnext_tiny", "compiled", [160, 160, 160]),
        row("fastervit_0", "eager", [10, 10, 10], part=LATENCY, batch_size=1),
        row("fastervit_0", "torch-kernels", [60, 60, 60], part=LATENCY, batch_size=1),
    ]
    steps = [row("fastervit_0", "eager", [50, 50, 50], part=TRAINING)]
    found = {line["what"]: line for line in summary.goals(rows, steps)}
    told = {what: (line["ratio"], line["status"]) for what, line in found.items()}
    assert told == {
        "fastervit_0, batch 128: over eager under autocast": (3.2, "reached"),
        "fastervit_0, batch 128: over torch.compile of it": (1.28, "not reached"),
        "fastervit_0, batch 128: over compiled convnext_tiny": (2.0, "not reached"),
        "fastervit_0, batch 1: over eager, in latency": (6.0, "reached"),
        "fastervit_0: a step of training, over eager": (None, "not measured"),
    }
    assert found["fastervit_0, batch 128: over eager under autocast"]["way"] == "torch-kernels"


def test_peers_of_equal_or_better_top1() -> None:
    autotuned = f"{HEADLINE}, autotuned"
    rows = [
        row("fastervit_0", "torch-kernels", [300, 300, 300]),
        row("fastervit_0", "eager", [900, 900, 900]),
        row("fastervit_0", "torch-kernels", [300, 300, 300], part=autotuned),
        row("worse", "compiled", [999, 999, 999], top1_published=80.0),
        row("slower", "compiled", [100, 100, 100], top1_published=82.1),
        row("winner", "compiled", [250, 250, 250], top1_published=83.0),
        row("winner", "torch-compiled", [400, 400, 400], top1_published=83.0, part=autotuned),
        row("absent", "compiled", [], top1_published=84.0),
    ]
    compared = summary.beside_peers(rows)
    told = {line["peer"]: (line["ratio"], line["status"], line["part"]) for line in compared}
    assert told == {
        "slower": (3.0, "faster", HEADLINE),
        "winner": (0.75, "not faster", autotuned),
        "absent": (None, "not measured", ""),
    }
    assert summary.verdicts(compared) == [
        "fastervit_0: not above winner (1.33 times as fast); not measured: absent",
    ]
    assert summary.verdicts(compared[:1]) == ["fastervit_0: above all 1 measured peers of equal or better top-1"]


def test_shares_of_the_floor() -> None:
    floors = [
        {"network": "fastervit_0", "side": 224, "batch_size": 128, "stage": "stem", "floor_ms": 1.0},
        {"network": "fastervit_0", "side": 224, "batch_size": 128, "stage": "all", "floor_ms": 2.0},
        {"network": "fastervit_1", "side": 224, "batch_size": 128, "stage": "all", "floor_ms": 2.0},
    ]
    rows = [row("fastervit_0", "torch-kernels", [32_000] * 3), row("fastervit_0", "eager", [64_000] * 3)]
    known, unknown = summary.shares(rows, floors)
    assert (known["measured_ms"], known["share"]) == (4.0, 0.5)
    assert (unknown["measured_ms"], unknown["status"]) == (None, "not measured")
