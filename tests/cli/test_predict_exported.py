"""`fastervit predict` with a network that `fastervit export` made: the rows of the checkpoint itself."""

import csv

import pytest

from openfastervit_cli import main
from tests.pocket import picture, write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    (folder / "photos").mkdir()
    for number in range(5):
        picture(number).save(folder / "photos" / f"{number}.png")
    write_checkpoint(folder / "net.safetensors")
    return folder


def rows(folder, checkpoint, *options):
    out = folder / f"{checkpoint}.csv"
    command = ["predict", str(folder / "photos"), "--checkpoint", str(folder / checkpoint), "--out", str(out)]
    assert main([*command, "--topk", "2", *options]) == 0
    return list(csv.DictReader(out.open()))


@pytest.mark.parametrize(("to", "name"), [("onnx", "net.onnx"), ("openvino", "net.xml"), ("torch", "net.pt2")])
def test_rows_are_the_checkpoints(folder, to, name):
    checkpoint = str(folder / "net.safetensors")
    assert main(["export", "--checkpoint", checkpoint, "--to", to, "--out", str(folder / name)]) == 0
    expected, found = rows(folder, "net.safetensors", "--overwrite"), rows(folder, name)
    assert len(found) == 5
    for ours, theirs in zip(found, expected, strict=True):
        assert [ours[key] for key in ("image", "class_1", "class_2")] == [
            theirs[key] for key in ("image", "class_1", "class_2")
        ]
        assert float(ours["score_1"]) == pytest.approx(float(theirs["score_1"]), rel=1e-4)


def test_what_was_settled_cannot_be_asked_for(folder, capsys):
    file = str(folder / "other.onnx")
    assert main(["export", "--checkpoint", str(folder / "net.safetensors"), "--to", "onnx", "--out", file]) == 0
    photo = str(folder / "photos" / "0.png")
    for options, message in (
        (["--model", "fastervit_0"], "settled when it was exported"),
        (["--img-size", "96"], "settled when it was exported"),
        (["--precision", "bf16"], "computes in fp32, not bf16"),
        (["--engine", "openvino"], "runs on onnxruntime, not on openvino"),
    ):
        assert main(["predict", photo, "--checkpoint", file, *options]) == 1
        assert message in capsys.readouterr().err
    (folder / "text.onnx").write_text("no network")
    assert main(["predict", photo, "--checkpoint", str(folder / "text.onnx")]) == 1
    assert "text.onnx" in capsys.readouterr().err
