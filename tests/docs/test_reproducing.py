"""The figures of docs/reproducing.md are those of the committed results."""

import csv
import re

import pytest

from tests.conftest import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "reproducing.md"
RESULTS = REPOSITORY / "studies" / "results"


def table_after(marker: str) -> list[dict[str, str]]:
    """The table that follows a comment naming its file."""
    text = DOCUMENT.read_text(encoding="utf-8").partition(f"<!-- {marker} -->")[2]
    lines = [line for line in text.lstrip().split("\n\n")[0].splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def rows_of(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_imagenette() -> None:
    measured = rows_of("imagenette_cpu.csv")
    told = table_after("studies/results/imagenette_cpu.csv")
    assert told
    assert {row["network"] for row in told} == {row["network"] for row in measured}
    for row in told:
        runs = [run for run in measured if run["network"] == row["network"]]
        assert re.findall(r"[\d.]+", row["top-1, each seed"]) == [f"{float(run['top1']):.2f}" for run in runs]
        assert float(row["multiply-adds"].removesuffix(" M")) == pytest.approx(
            int(runs[0]["multiply_adds"]) / 1e6, abs=0.05
        )
        assert float(row["parameters"].removesuffix(" M")) == pytest.approx(int(runs[0]["parameters"]) / 1e6, abs=0.005)
    assert all(float(run["top1"]) >= 75 for run in measured if run["network"] == "fastervit")


def test_training_loop() -> None:
    measured = rows_of("training_loop.csv")
    told = table_after("studies/results/training_loop.csv")
    assert len(told) == len(measured) > 0
    for row, run in zip(told, measured, strict=True):
        for name in ("loop", "loader", "step"):
            assert row[name] == f"{float(run[name]):.0f}"
        assert row["waiting"] == f"{float(run['waiting']):.1%}"
        assert row["peak memory"] == f"{int(run['peak_bytes']) / 2**30:.2f} GiB"
        assert row["workers"] == run["workers"]
        assert row["recipe"] == f"`{run['recipe']}`"
    assert any(run["cores"] and run["processor"] for run in measured)


@pytest.mark.parametrize("study", ["attention_designs", "hat_parts", "plug_and_play"])
def test_studies_that_train(study: str) -> None:
    measured = {row["variant"]: row for row in rows_of(f"{study}_cpu.csv")}
    told = {row["variant"]: row for row in table_after(f"studies/results/{study}_cpu.csv")}
    assert list(told) == list(measured)
    for name, row in told.items():
        run = measured[name]
        assert row["top-1, each seed"].split(", ") == run["top1_each_seed"].split()
        assert row["mean"] == run["top1"]
        assert row["verdict"] == (f"{run['verdict']} ({run['compared_with']})" if run["compared_with"] else "")
        assert row["multiply-adds"] == f"{int(run['multiply_adds_in_64']) / 1e6:.1f} M"
        assert row["parameters"] == f"{int(run['parameters']) / 1e6:.2f} M"
        if study == "attention_designs":
            assert row["images/s"] == f"{float(run['images_per_second']):.0f}"
            assert row["as fastervit_0"] == f"{float(run['fastervit_0_images_per_second']):.1f}"
        assert (run["scale"], run["failed"]) == ("cpu", "")
        assert len(run["seeds"].split()) >= 2


def test_what_the_table_says_of_the_studies() -> None:
    """Figures and verdicts of the rows, against the committed results."""
    text = DOCUMENT.read_text(encoding="utf-8")
    fits = {(row["engine"], row["attention"]): row["exponent_of_time"] for row in rows_of("resolution_fits_cpu.csv")}
    ours, full = ([f"{float(fits[e, d]):.2f}" for e in ("torch-folded", "torch-eager")] for d in ("hat", "global"))
    assert f"power {ours[0]} folded, {ours[1]} eager; {full[0]} and {full[1]} for full attention" in text
    for study in ("attention_designs", "hat_parts"):
        assert {row["verdict"] for row in rows_of(f"{study}_cpu.csv")} == {"", "no difference seen"}
    swin, hat = rows_of("plug_and_play_cpu.csv")
    assert hat["verdict"] == "better"
    told = re.findall(r"better by ([\d.]+) points", text)
    assert [float(points) for points in told] == [pytest.approx(float(hat["difference"]), abs=0.051)]
    assert round(int(hat["multiply_adds_in_64"]) / int(swin["multiply_adds_in_64"]), 1) == 1.5
    speed = {
        row["variant"]: float(row["fastervit_0_images_per_second"]) for row in rows_of("attention_designs_cpu.csv")
    }
    assert [name for name, value in speed.items() if value < speed["hat"]] == ["global"]


def test_coco_tiny() -> None:
    measured = rows_of("coco_tiny_cpu.csv")
    told = table_after("studies/results/coco_tiny_cpu.csv")
    assert len(told) == len(measured) == 4
    for row, run in zip(told, measured, strict=True):
        assert (row["part"], row["judged on"]) == (run["part"], run["split"])
        assert (row["photographs"], row["updates"]) == (run["photographs"], run["updates"])
        for kind in ("box", "mask"):
            assert row[f"{kind} AP"] == f"{float(run[f'{kind}_ap']):.3f}"
    assert all(float(run["box_ap"]) == float(run["mask_ap"]) == 1 for run in measured if run["part"] == "ground_truth")
    (learned,) = (run for run in measured if run["part"] == "overfit")
    assert float(learned["box_ap"]) >= 0.8
    assert float(learned["mask_ap"]) >= 0.7
    (epoch,) = (run for run in measured if run["part"] == "epoch")
    assert int(epoch["starts"]) == 2, "killed and resumed"


def test_camvid() -> None:
    measured = rows_of("camvid_cpu.csv")
    told = table_after("studies/results/camvid_cpu.csv")
    for row, run in zip(told, measured, strict=True):
        assert (row["split"], row["images"], row["look"]) == (run["split"], run["images"], run["look"])
        for name, column in (
            ("mIoU", "miou"),
            ("mean accuracy", "mean_accuracy"),
            ("pixel accuracy", "pixel_accuracy"),
        ):
            assert row[name] == f"{float(run[column]):.3f}"
    classes = table_after("classes of studies/results/camvid_cpu.csv")
    single = {run["split"]: run for run in measured if run["look"] == "single"}
    assert {f"iou_{row['class']}" for row in classes} == {name for name in measured[0] if name.startswith("iou_")}
    for row in classes:
        for split in ("val", "test"):
            assert row[split] == f"{float(single[split]['iou_' + row['class']]):.3f}"
    last = rows_of("camvid_curve_cpu.csv")[-1]
    verdict = DOCUMENT.read_text(encoding="utf-8").partition("`python -m studies.camvid ")[2].partition("\n")[0]
    assert f"{float(last['val_miou']):.3f} after {int(last['train_seconds']) // 60 + 1} minutes" in verdict
