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


def table_after(marker: str) -> list[list[str]]:
    """The cells of the table that follows a comment, without its head."""
    lines = TEXT.partition(f"<!-- {marker} -->")[2].lstrip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def results(name: str) -> list[dict[str, str]]:
    with (REPOSITORY / "studies" / "results" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_as_images_grow() -> None:
    rows = results("resolution_cpu.csv")
    designs = list(dict.fromkeys(row["attention"] for row in rows if row["engine"] == "torch-eager"))
    by = {(row["side"], row["engine"], row["attention"]): row for row in rows}
    columns = [("torch-folded", name) for name in ("hat", "window", "global")]
    columns += [("torch-eager", name) for name in designs]
    told = table_after("studies/results/resolution_cpu.csv: ms a megapixel")
    assert [line[0] for line in told] == list(dict.fromkeys(row["side"] for row in rows if row["engine"]))
    for side, *cells in told:
        for cell, (engine, design) in zip(cells, columns, strict=True):
            row = by[side, engine, design]
            if row["status"] == "ok":
                assert cell == f"{float(row['ms_per_megapixel']):.0f}"
            else:
                assert row["status"].startswith(cell)
    told = table_after("studies/results/resolution_cpu.csv: thousand multiply-adds a pixel")
    counts = {(row["side"], row["attention"]): int(row["multiply_adds_per_pixel"]) for row in rows}
    assert [line[0] for line in told] == list(dict.fromkeys(row["side"] for row in rows))
    for side, *cells in told:
        assert cells == [f"{counts[side, design] / 1e3:.1f}" for design in designs]
    assert all(row["multiply_adds"] == row["formula_multiply_adds"] for row in rows if row["formula_multiply_adds"])
    assert {row["scale"] for row in rows} == {"cpu"}


def test_exponents() -> None:
    told = table_after("studies/results/resolution_fits_cpu.csv")
    fits = results("resolution_fits_cpu.csv")
    names = ("exponent_of_time", "exponent_of_memory", "exponent_of_multiply_adds", "hat_faster_from_side")
    assert told == [[row["attention"], row["engine"], *(row[name] for name in names)] for row in fits]


def test_accuracy_at_other_sizes() -> None:
    rows = results("resolution_accuracy_cpu.csv")
    top1 = {(row["side"], row["attention"]): row["top1"] for row in rows}
    designs = ("hat", "window", "shifted-window", "twins", "edgevit", "global")
    told = table_after("studies/results/resolution_accuracy_cpu.csv")
    assert [line[0] for line in told] == list(dict.fromkeys(row["side"] for row in rows))
    assert all(cells == [top1[side, design] for design in designs] for side, *cells in told)
    assert len(top1) == len(rows), "one seed"
    lost = {design: float(top1["128", design]) - float(top1["224", design]) for design in designs}
    assert max(lost, key=lambda design: lost[design]) == "hat"
    assert min(lost, key=lambda design: lost[design]) == "global"
    assert (round(lost["hat"]), round(lost["global"])) == (14, 8)
    for design in designs:
        assert top1["160", design] == max(value for (_, name), value in top1.items() if name == design)


def test_what_is_said_of_growing_images() -> None:
    """Each sentence below the tables, against the rows."""
    rows = results("resolution_cpu.csv")
    time = {(r["engine"], r["attention"], r["side"]): float(r["ms_per_image"]) for r in rows if r["ms_per_image"]}
    count = {(row["attention"], int(row["side"])): int(row["multiply_adds"]) for row in rows}
    sides = [row["side"] for row in rows if row["engine"] == "torch-eager" and row["attention"] == "hat"]
    assert time["torch-folded", "hat", "224"] > time["torch-folded", "global", "224"]
    assert time["torch-folded", "hat", "448"] < time["torch-folded", "global", "448"]
    assert time["torch-eager", "hat", "224"] < time["torch-eager", "global", "224"]
    assert ("torch-folded", "global", "2048") not in time
    for design in ("window", "shifted-window", "edgevit"):
        assert all(time["torch-eager", design, side] < time["torch-eager", "hat", side] for side in sides)
    dearer = {
        design: min(side for name, side in count if name == design and count[design, side] > count["hat", side])
        for design in ("edgevit", "twins")
    }
    assert dearer == {"edgevit": 2560, "twins": 896}
    growth = {d: count[d, 8192] / count[d, 2048] / 16 for d in ("hat", "hat-2-levels")}
    assert 1.15 < growth["hat"] < 1.25, "a fifth more"
    assert round(100 * (1 - growth["hat-2-levels"])) == 6
    saved = 1 - time["torch-eager", "hat-2-levels", "2048"] / time["torch-eager", "hat", "2048"]
    assert round(100 * saved) == 12
    for side in ("224", "448", "896"):
        assert time["torch-eager", "hat-2-levels", side] > time["torch-eager", "hat", side]
