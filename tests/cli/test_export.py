"""``fastervit export``: what it writes, says and refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from openfastervit.inference.export import load_exported
from openfastervit.models import read_metadata
from tests.cli.conftest import Run
from tests.inference.lively import difference
from tests.networks import images
from tests.pocket import CLASSES, pocket, write_broken


def test_an_onnx_file(fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path):
    out = tmp_path / "new" / "network.onnx"
    done = fastervit(
        "export", "--checkpoint", checkpoint, "--to", "onnx", "--out", out, "--calibration", photos, "--size", 64, 96
    )
    assert (done.code, done.out) == (0, f"{out}\n")
    random, real = done.err.splitlines()
    assert random.startswith("fastervit: random images of 64 x 96: logits differ from the network's by at most ")
    assert real.startswith("fastervit: real images of 64 x 96: ")
    assert real.endswith("; the best class agrees on 100.0%")
    assert list(out.parent.iterdir()) == [out]

    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    x = images(64, 96, batch=3)
    with torch.no_grad():
        assert difference(torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), pocket()(x)) < 1e-5
    told = json.loads(session.get_modelmeta().custom_metadata_map["openfastervit"])
    assert told["classes"] == CLASSES
    assert told["model"] == read_metadata(checkpoint)["model"]
    assert told["input"]["size"] == [3, 64, 96]


def test_pixels_of_any_size(fastervit: Run, checkpoint: Path, tmp_path: Path):
    out = tmp_path / "network.onnx"
    args = ["--checkpoint", checkpoint, "--to", "onnx", "--out", out, "--dynamic-size", "--preprocessing"]
    done = fastervit("export", *args, "--precision", "fp16")
    assert done.code == 0
    assert "random images of 64 x 64, 64 x 147, 123 x 64, 33 x 65: logits" in done.err
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (pixels,) = session.get_inputs()
    assert (pixels.name, pixels.type, pixels.shape) == ("pixels", "tensor(uint8)", ["batch", 3, "height", "width"])
    (logits,) = session.run(None, {"pixels": np.zeros((2, 3, 50, 70), np.uint8)})
    assert logits.dtype == np.float32
    assert any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in onnx.load(out).graph.initializer)


def test_unreadable_photographs_are_named(fastervit: Run, checkpoint: Path, tmp_path: Path):
    broken = write_broken(tmp_path / "broken.png")
    (tmp_path / "whole.png").unlink(missing_ok=True)
    out = tmp_path / "network.pt2"
    done = fastervit("export", "--checkpoint", checkpoint, "--to", "torch", "--out", out, "--calibration", tmp_path)
    assert done.code == 1
    first, second = done.err.splitlines()
    assert first.startswith(f"fastervit: error: {broken}: ")
    assert second == f"fastervit: error: none of the images in {tmp_path} can be read"
    assert not out.exists()


def test_a_torch_program(fastervit: Run, checkpoint: Path, tmp_path: Path):
    out = tmp_path / "network.pt2"
    assert fastervit("export", "--checkpoint", checkpoint, "--to", "torch", "--out", out).code == 0
    exported = load_exported(out)
    assert list(exported.classes) == CLASSES
    x = images(64, 64)
    with torch.no_grad():
        assert difference(exported.engine(x), pocket()(x)) < 1e-5


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--to", "onnx", "--out", "a.xml"], ["a.xml does not end in .onnx", "name it a.onnx"]),
        (["--to", "onnx", "--out", "a.onnx", "--precision", "bf16"], ["onnx in bf16", "choose fp16"]),
        (["--to", "torch", "--out", "a.pt2", "--precision", "int8"], ["torch in int8", "onnx or openvino"]),
        (["--to", "onnx", "--out", "a.onnx", "--precision", "int8"], ["needs --calibration FOLDER"]),
        (["--to", "tensorrt", "--out", "a.engine", "--dynamic-size"], ["one size of images"]),
        (["--to", "onnx", "--out", "a.onnx", "--size", "64", "--dynamic-size"], ["contradict each other"]),
        (["--to", "onnx", "--out", "a.onnx", "--size", "1", "2", "3"], ["--size 1 2 3 is neither"]),
        (["--to", "onnx", "--out", "a.onnx", "--size", "16"], ["at least 32"]),
        (["--to", "onnx", "--out", "a.onnx", "--calibration", "nowhere"], ["no image or folder at nowhere"]),
        (["--to", "onnx", "--out", "a.onnx", "--calibration-images", "0"], ["--calibration-images 0"]),
    ],
)
def test_refusals(
    fails: Callable[..., str],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    says: list[str],
):
    monkeypatch.chdir(tmp_path)
    fails("export", "--checkpoint", checkpoint, *args, says=says)
    assert list(tmp_path.iterdir()) == []


def test_few_photographs_for_int8(fails: Callable[..., str], checkpoint: Path, photos: Path, tmp_path: Path):
    args = ["--to", "onnx", "--out", tmp_path / "a.onnx", "--precision", "int8", "--calibration", photos]
    fails("export", "--checkpoint", checkpoint, *args, says=["at least 16 real images", "not 5"])
