"""The table of docs/benchmarking.md is that of the committed rows, and what it concludes follows from them."""

import csv

from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "docs" / "benchmarking.md").read_text(encoding="utf-8")
RESULTS = REPOSITORY / "studies" / "results" / "benchmark_cpu" / "results.csv"


def test_table() -> None:
    with RESULTS.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["height"] == row["top1_size"]]
    assert all(row["status"] == "ok" for row in rows)
    bf16 = {row["model"]: row for row in rows if row["precision"] == "bf16"}
    lines = (
        TEXT.partition("<!-- studies/results/benchmark_cpu/results.csv -->")[2].lstrip().split("\n\n")[0].splitlines()
    )
    told = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines[2:]]
    expected = []
    for row in sorted(rows, key=lambda row: -float(row["images_per_second"])):
        if row["precision"] != "fp32":
            continue
        slower = ", ".join(row["not_faster_than"].split()) or "(faster than all)"
        expected.append(
            [
                row["model"],
                f"{float(row['top1_published']):.1f}",
                row["height"],
                f"{float(row['images_per_second']):.1f}",
                f"{float(bf16[row['model']]['images_per_second']):.1f}",
                slower if row["model"].startswith("fastervit") else "",
            ]
        )
    assert told == expected


def test_what_is_concluded() -> None:
    with RESULTS.open(newline="", encoding="utf-8") as file:
        rows = {
            (row["model"], row["precision"]): row for row in csv.DictReader(file) if row["height"] == row["top1_size"]
        }
    for precision in ("fp32", "bf16"):
        assert rows["fastervit_0", precision]["not_faster_than"] == ""
        for name, peers in (("fastervit_1", ["caformer_s18"]), ("fastervit_2", ["efficientvit_l1", "efficientvit_l2"])):
            ours = rows[name, precision]
            assert set(peers) <= set(ours["not_faster_than"].split())
            assert all(float(rows[peer, precision]["top1_published"]) > float(ours["top1_published"]) for peer in peers)


def test_as_images_grow() -> None:
    with (REPOSITORY / "studies" / "results" / "resolution_cpu.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["side"], row["attention"]): row for row in csv.DictReader(file)}
    after = TEXT.partition("<!-- studies/results/resolution_cpu.csv -->")[2].lstrip().split("\n\n")[0].splitlines()
    told = [[cell.strip() for cell in line.strip("|").split("|")] for line in after[2:]]
    assert [line[0] for line in told] == list(dict.fromkeys(side for side, _ in rows))
    for side, *cells in told:
        columns = [(kind, "ms_per_megapixel") for kind in ("hierarchical", "windowed", "full")]
        columns += [(kind, "memory_mb") for kind in ("hierarchical", "full")]
        for cell, (kind, column) in zip(cells, columns, strict=False):
            value = rows[side, kind][column]
            assert cell == (f"{float(value):.0f}" if value else "out of memory")
            assert bool(value) == (rows[side, kind]["status"] == "ok")
        counted = [int(rows[side, kind]["multiply_adds_per_pixel"]) for kind in ("hierarchical", "windowed", "full")]
        assert cells[5:] == [f"{count / 1e3:.1f}" for count in counted]
    assert all(row["multiply_adds"] == row["formula_multiply_adds"] for row in rows.values())
    times = {key: float(row["ms_per_image"]) for key, row in rows.items() if row["ms_per_image"]}
    assert round(times["1344", "full"] / times["1344", "hierarchical"], 1) == 3.3
    more = [times[side, "hierarchical"] / times[side, "windowed"] for side, kind in times if kind == "windowed"]
    assert 1.03 < min(more) < max(more) < 1.1
