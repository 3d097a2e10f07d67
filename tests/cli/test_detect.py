"""``fastervit detect``, from a folder of pictures to predictions, by its command line alone."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from openfastervit.inference.dense import load_detector
from openfastervit.training.tables import read_table
from tests.cli.conftest import Run
from tests.shapes import BACKBONE, CATEGORY_IDS, CLASSES, RCNN, write_coco

OPTIONS = [
    *("--model-options", json.dumps(BACKBONE), "--head-options", json.dumps(RCNN), "--min-sizes", "96"),
    *("--max-size", "160", "--batch-size", "4", "--lr-batch", "4", "--lr", "0.001", "--workers", "0"),
    *("--device", "cpu", "--drop-path", "0"),
]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("data") / "coco")


@pytest.fixture(scope="module")
def trained(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    import openfastervit_cli

    out = tmp_path_factory.mktemp("runs") / "detector"
    words = ["detect", "train", "--data", str(coco), "--out", str(out), "--epochs", "2", *OPTIONS]
    assert openfastervit_cli.main(words) == 0
    return out


def test_a_run_leaves_what_runs_leave(trained: Path) -> None:
    columns, rows = read_table(trained / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for name in ("val_box_ap", "val_mask_ap", "train_loss_classifier_3", "train_loss_mask", "train_loss"):
        assert name in columns
    assert all(float(row["train_loss"]) > 0 for row in rows)
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    with Image.open(trained / "augmented.png") as sheet:
        assert sheet.width > 384  # tiles with boxes, looked at by people


def test_the_checkpoint_tells_all_that_is_needed(trained: Path) -> None:
    detector = load_detector(trained)
    assert (detector.classes, detector.category_ids) == (CLASSES, CATEGORY_IDS)
    assert (detector.plan.head, detector.plan.min_sizes, detector.plan.max_size) == ("cascade-mask-rcnn", (96,), 160)


def test_evaluation_is_pycocotools_on_the_predictions(
    fastervit: Run, trained: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = fastervit(
        *("detect", "evaluate", "--checkpoint", trained, "--data", coco, "--workers", "0", "--device", "cpu"),
        *("--out", tmp_path / "report", "--json"),
    )
    assert outcome.code == 0
    figures = json.loads(outcome.out)
    annotations = coco / "annotations" / "instances_val2017.json"
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        truth = COCO(str(annotations))
        judged = COCOeval(truth, truth.loadRes(str(tmp_path / "report" / "predictions.json")), kind)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
        assert figures[f"{name}_ap"] == pytest.approx(judged.stats[0], abs=1e-9)
        assert figures[f"{name}_ap50"] == pytest.approx(judged.stats[1], abs=1e-9)
    last = read_table(trained / "metrics.csv")[1]
    assert max(float(row["val_box_ap"]) for row in last) == pytest.approx(figures["box_ap"], abs=1e-4)
    capsys.readouterr()  # what pycocotools prints
    again = fastervit(
        *("detect", "evaluate", "--predictions", tmp_path / "report" / "predictions.json", "--data", coco, "--json")
    )
    assert json.loads(again.out)["mask_ap"] == pytest.approx(figures["mask_ap"], abs=1e-9)


def test_predictions_are_coco_results_with_pictures(fastervit: Run, trained: Path, coco: Path, tmp_path: Path) -> None:
    out, pictures = tmp_path / "found.json", tmp_path / "pictures"
    photos = coco / "val2017"
    outcome = fastervit(
        *("detect", "predict", photos, "--checkpoint", trained / "best.safetensors", "--out", out),
        *("--pictures", pictures, "--score-threshold", "0.0", "--device", "cpu"),
    )
    assert outcome.code == 0
    results: list[Mapping[str, Any]] = json.loads(out.read_text())
    assert {row["category_id"] for row in results} <= set(CATEGORY_IDS)
    # Files named by numbers, as COCO's are, have these as their ids.
    assert {row["image_id"] for row in results} <= {int(path.stem) for path in photos.iterdir()}
    assert results
    assert {"bbox", "score", "segmentation", "file_name"} <= results[0].keys()
    assert sorted(path.name for path in pictures.iterdir()) == sorted(path.name for path in photos.iterdir())
    outcome = fastervit(
        *("detect", "predict", photos, "--checkpoint", trained, "--out", out, "--score-threshold", "0.0"),
        *("--annotations", coco / "annotations" / "instances_val2017.json", "--device", "cpu"),
    )
    assert {row["image_id"] for row in json.loads(out.read_text())} <= {int(path.stem) + 1 for path in photos.iterdir()}


def test_an_interrupted_run_goes_on(fastervit: Run, coco: Path, trained: Path, tmp_path: Path) -> None:
    """Ended after one epoch and resumed, a run ends as the one that was not."""
    from openfastervit.training import run as runs
    from openfastervit.training.recorder import Recorder

    class EndedError(Exception):
        pass

    def end(self: Recorder, *args: Any) -> None:
        original(self, *args)
        if args[0].epoch == 1:
            raise EndedError

    original = Recorder.checkpoint
    words = ["detect", "train", "--data", str(coco), "--out", str(tmp_path / "run"), "--epochs", "2", *OPTIONS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "checkpoint", end)
        with pytest.raises(EndedError):
            fastervit(*words)
    assert runs.resumed_recipe(tmp_path / "run").task == "detection"
    assert fastervit("detect", "train", "--resume", tmp_path / "run").code == 0
    whole, resumed = (read_table(folder / "metrics.csv")[1] for folder in (trained, tmp_path / "run"))
    for name in ("train_loss", "val_box_ap"):
        assert resumed[1][name] == whole[1][name]
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == (trained / "best.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train"], ["data is not given", "--data coco"]),
        (["train", "--data", "nowhere"], ["nowhere"]),
        (["train", "--data", "x", "--mesa", "1", "--ema-decay", "0.9"], ["mesa", "classifiers"]),
        (["train", "--data", "x", "--min-sizes", "16"], ["min_sizes=[16]", "32"]),
        (["train", "--data", "x", "--max-size", "400"], ["max_size=400", "raise it"]),
        (["evaluate"], ["--checkpoint", "--predictions"]),
        (["evaluate", "--checkpoint", "none.safetensors", "--data", "x"], ["none.safetensors"]),
        (["predict", "x.jpg", "--checkpoint", "y", "--score-threshold", "2"], ["--score-threshold 2"]),
    ],
)
def test_what_is_wrong_is_named(fastervit: Run, words: list[str], says: list[str]) -> None:
    outcome = fastervit("detect", *words)
    assert outcome.code == 1
    assert outcome.err.startswith("fastervit: error: ")
    for part in says:
        assert part in outcome.err


def test_commands_tell_whose_a_checkpoint_is(fastervit: Run, trained: Path, coco: Path) -> None:
    for words in (["predict"], ["segment", "predict"]):
        outcome = fastervit(*words, coco / "val2017", "--checkpoint", trained / "best.safetensors")
        assert outcome.code == 1
        assert "fastervit detect predict" in outcome.err


def test_an_image_that_cannot_be_read_is_named_and_left_out(fastervit: Run, trained: Path, tmp_path: Path) -> None:
    data = write_coco(tmp_path / "coco", train=1, val=3)
    broken = sorted((data / "val2017").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:100])
    outcome = fastervit(
        *("detect", "evaluate", "--checkpoint", trained, "--data", data, "--workers", "0", "--device", "cpu"),
        *("--max-unreadable", "0.5"),
    )
    assert outcome.code == 3
    assert broken.name in outcome.err
    outcome = fastervit("detect", "predict", data / "val2017", "--checkpoint", trained, "--device", "cpu")
    assert outcome.code == 3
    assert broken.name in outcome.err


def test_pictures_keep_their_folders_and_never_replace_one_another(
    fastervit: Run, trained: Path, coco: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    first, second = sorted((coco / "val2017").iterdir())[:2]
    for folder, source in (("a", first), ("b", second)):
        (photos / folder).mkdir(parents=True)
        shutil.copy(source, photos / folder / "1.png")
    words = ["detect", "predict", photos, "--checkpoint", trained, "--out", tmp_path / "found.json", "--device", "cpu"]
    assert fastervit(*words, "--pictures", tmp_path / "pictures", "--score-threshold", "0").code == 0
    assert (tmp_path / "pictures" / "a" / "1.png").read_bytes() != (tmp_path / "pictures" / "b" / "1.png").read_bytes()
    assert {row["file_name"] for row in json.loads((tmp_path / "found.json").read_text())} <= {"a/1.png", "b/1.png"}
    Image.open(first).save(photos / "a" / "1.bmp")
    outcome = fastervit(*words, "--pictures", tmp_path / "others")
    assert outcome.code == 1
    assert "both become a/1.png" in outcome.err
    assert not (tmp_path / "others").exists()


def test_masks_that_cannot_be_used_are_told_in_an_evaluation(
    fastervit: Run, trained: Path, coco: Path, tmp_path: Path
) -> None:
    content = json.loads((coco / "annotations" / "instances_val2017.json").read_text())
    content["annotations"][0]["segmentation"] = [[1, 1, 2, 2]]
    (tmp_path / "val.json").write_text(json.dumps(content))
    outcome = fastervit(
        *("detect", "evaluate", "--checkpoint", trained, "--annotations", tmp_path / "val.json"),
        *("--images", coco / "val2017", "--workers", "0", "--device", "cpu"),
    )
    assert outcome.code == 0
    assert "1 of" in outcome.err


@pytest.mark.parametrize(
    ("option", "says"),
    [("nope=3", "'nope'"), ("fpn_channel=8", "did you mean fpn_channels"), ("fpn_channels=abc", "another type")],
)
def test_options_of_heads_are_checked(fastervit: Run, coco: Path, tmp_path: Path, option: str, says: str) -> None:
    name, _, value = option.partition("=")
    words = ["detect", "train", "--data", coco, "--out", tmp_path / "run", *OPTIONS, f"--head-options.{name}", value]
    outcome = fastervit(*words, "--epochs", "1")
    assert outcome.code == 1
    assert says in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_another_ones_weights(fastervit: Run, trained: Path, coco: Path, tmp_path: Path) -> None:
    """With a rate of next to nothing, the first evaluation is that of the weights it started from."""
    words = ["detect", "train", "--data", coco, "--out", tmp_path / "run", "--epochs", "1", *OPTIONS]
    words[words.index("--lr") + 1] = "1e-12"
    outcome = fastervit(*words, "--weights", trained / "best.safetensors", "--freeze-backbone", "--warmup-lr", "0")
    assert outcome.code == 0, outcome.err
    before = read_table(trained / "metrics.csv")[1][-1]
    after = read_table(tmp_path / "run" / "metrics.csv")[1][-1]
    assert float(after["val_box_ap"]) == pytest.approx(float(before["val_box_ap"]), abs=0.1)
    assert float(after["train_loss"]) < float(read_table(trained / "metrics.csv")[1][0]["train_loss"])
