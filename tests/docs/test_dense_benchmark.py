"""What docs/benchmarking.md says of backbones in a head: columns that there are, and the figures of the results."""

import csv
import json
import re

import pytest

from openfastervit.benchmarking.cases import COLUMNS
from openfastervit.benchmarking.dense import BATCH_SIZES, DENSE_COLUMNS, SIZES, TASK_HEADS
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "docs" / "benchmarking.md").read_text(encoding="utf-8")
SECTION = TEXT.partition("## Backbones in a head\n")[2].partition("\n## ")[0]
FOLDER = REPOSITORY / "studies" / "results" / "detection_cpu"


def rows() -> dict[tuple[str, str], dict[str, str]]:
    with (FOLDER / "results.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == list(DENSE_COLUMNS)
        return {(row["backbone"], row["mode"]): row for row in reader}


def test_columns() -> None:
    """Those that the section adds to the ones above, and no others."""
    told = {
        name for line in SECTION.splitlines() if line.startswith(("- `", "  ")) for name in re.findall(r"`(\w+)`", line)
    }
    assert told - {"inference", "training"} <= set(DENSE_COLUMNS)
    numbers = {name for name in DENSE_COLUMNS if re.search(r"_(m|g|p50|boxes)$|^detections$|^backbone", name)}
    assert numbers <= told
    assert {"images_per_second", "peak_memory_mb", "block", "status"} <= set(DENSE_COLUMNS) & set(COLUMNS)


def test_defaults() -> None:
    flat = " ".join(SECTION.split())
    assert SIZES == {"detection": (800, 1333), "segmentation": (512, 512)}
    assert "one image of 800x1333" in flat
    assert BATCH_SIZES == {"detection": 1, "segmentation": 2}
    assert "at 512x512, two images at a time" in flat
    assert TASK_HEADS["detection"][0] == "cascade-mask-rcnn"
    assert "100 masks of 800x1333 take 427 MB" in flat
    assert round(100 * 800 * 1333 * 4 / 1e6) == 427


def test_figures() -> None:
    found = rows()
    lines = SECTION.partition("<!-- studies/results/detection_cpu/results.csv -->")[2].lstrip().split("\n\n")[0]
    told = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines.splitlines()[2:]]
    expected = []
    for backbone in dict.fromkeys(name for name, _ in found):
        row = found[backbone, "inference"]
        cells = [
            backbone,
            f"{float(row['backbone_parameters_m']):.1f} M",
            f"{float(row['backbone_multiply_adds_g']):.1f} G",
        ]
        for mode in ("inference", "training"):
            row = found[backbone, mode]
            seconds = [row["batch_size"], row["images_per_second_q3"], row["images_per_second_q1"]]
            batch, fast, slow = map(float, seconds)
            cells += [
                f"{batch / float(row['images_per_second']):.2f} ({batch / fast:.2f} to {batch / slow:.2f})",
                f"{float(row['peak_memory_mb']) / 1000:.2f} GB",
            ]
        expected.append(cells)
    assert told == expected


def test_all_did_the_same_work() -> None:
    found = rows()
    assert all(row["status"] == "ok" for row in found.values())
    names = ("head", "precision", "batch_size", "height", "width", "box_head_boxes", "mask_head_boxes", "detections")
    for mode in ("inference", "training"):
        assert len({tuple(row[name] for name in names) for (_, of), row in found.items() if of == mode}) == 1
        assert len({row["block"] for (_, of), row in found.items() if of == mode}) == 1
    # torchvision's limits, in each of three stages.
    assert found["fastervit_0", "inference"]["box_head_boxes"] == str(3 * 1000)
    assert found["fastervit_0", "training"]["box_head_boxes"] == str(3 * 512)
    assert found["fastervit_0", "training"]["mask_head_boxes"] == "128"


def test_what_is_concluded() -> None:
    found = rows()
    count = {name: float(row["backbone_multiply_adds_g"]) for (name, _), row in found.items()}
    assert min(count, key=lambda name: count[name]) == "fastervit_0"
    memory = {key: float(row["peak_memory_mb"]) for key, row in found.items()}
    learning = {name: value for (name, mode), value in memory.items() if mode == "training"}
    assert min(learning, key=lambda name: learning[name]) == "fastervit_0"
    at_work = [value for (_, mode), value in memory.items() if mode == "inference"]
    assert max(at_work) < 1.03 * min(at_work)


def test_who_is_ahead() -> None:
    """By quartiles of images a second that do not touch."""
    found = rows()
    quartiles = {
        key: (float(row["images_per_second_q1"]), float(row["images_per_second_q3"])) for key, row in found.items()
    }
    swin = "swin_tiny_patch4_window7_224"
    for other, mode in (("resnet50", "inference"), (swin, "inference"), (swin, "training")):
        assert quartiles["fastervit_0", mode][0] > quartiles[other, mode][1]
    assert quartiles["fastervit_0", "training"][0] < quartiles["resnet50", "training"][1]


def test_the_command_is_the_one_that_was_run() -> None:
    settings = json.loads((FOLDER / "settings.json").read_text(encoding="utf-8"))
    assert settings["command"] in " ".join(TEXT.replace("\\\n", " ").split())
    assert settings["finished"]
    assert not settings["interrupted"]


@pytest.mark.parametrize("figures", ["52.1", "50.4"])
def test_published_figures_are_called_so(figures: str) -> None:
    assert figures in SECTION.partition("not measured here")[2]
