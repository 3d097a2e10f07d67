"""``fastervit explain``: what it draws and says, and what it refuses."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from openfastervit.inference import Preparation, load_classifier
from openfastervit.inference.explain import explain
from openfastervit.inference.explain.picture import draw
from openfastervit_cli.explain import find_class
from tests.cli.conftest import Run
from tests.pocket import pocket, write_broken, write_checkpoint, write_photos


def by_hand(checkpoint: Path, image: Path, size: list[int] | None = None, **options) -> bytes:
    """The picture from the library's parts."""
    model, classes, told = load_classifier(checkpoint, None, size)
    preparation = Preparation.of(told)
    pixels = preparation.load(image)
    assert isinstance(pixels, torch.Tensor)
    prepared = preparation.normalised([pixels], torch.device("cpu"))
    return draw(explain(model, prepared, pixels, classes, **options), image.name)


def test_an_image_becomes_a_picture(fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = photos / "0.png"
    assert fastervit("explain", image, "--checkpoint", checkpoint, "--device", "cpu") == (0, "explanation.png\n", "")
    assert (tmp_path / "explanation.png").read_bytes() == by_hand(checkpoint, image)
    assert [path.name for path in tmp_path.iterdir()] == ["explanation.png"]


@pytest.mark.parametrize("asked", ["cat", "CAT", "2"])
def test_options_count(fastervit: Run, checkpoint: Path, photos: Path, tmp_path: Path, asked: str):
    image, out = photos / "1.png", tmp_path / "new" / "cat.png"
    options = ("--class", asked, "--stage", 2, "--img-size", 64, 96, "--device", "cpu", "--out", out)
    assert fastervit("explain", image, "--checkpoint", checkpoint, *options).code == 0
    assert out.read_bytes() == by_hand(checkpoint, image, [64, 96], target=2, stage=2)


def test_a_folder_becomes_a_folder(fastervit: Run, checkpoint: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 3)
    write_broken(tmp_path / "photos" / "0b.png")
    outcome = fastervit("explain", "photos", "--checkpoint", checkpoint, "--device", "cpu")
    pictures = ["explanations/0.png.png", "explanations/1.png.png", "explanations/sub/last one.jpg.png"]
    assert outcome.out.splitlines() == pictures
    assert outcome.code == 3
    first, last = outcome.err.splitlines()
    assert first.startswith("fastervit: error: photos/0b.png: ")
    assert last == "fastervit: error: 1 of 4 images could not be read; pictures of the others in explanations"
    assert sorted(str(path) for path in Path("explanations").rglob("*.png")) == pictures
    for picture in pictures:
        with Image.open(picture) as drawn:
            drawn.verify()


def test_a_picture_that_is_there_is_not_replaced(fastervit: Run, fails, checkpoint: Path, photos: Path, tmp_path: Path):
    out = tmp_path / "mine.png"
    out.write_bytes(b"mine")
    command = ("explain", photos / "0.png", "--checkpoint", checkpoint, "--device", "cpu", "--out", out)
    fails(*command, says=[f"{out} is there already", "--overwrite"])
    assert out.read_bytes() == b"mine"
    assert fastervit(*command, "--overwrite").code == 0
    assert out.read_bytes() == by_hand(checkpoint, photos / "0.png")


def test_no_carriers_is_no_error(fastervit: Run, photos: Path, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "one-window.safetensors")
    out = tmp_path / "small.png"
    options = ("--checkpoint", checkpoint, "--img-size", 32, "--device", "cpu", "--out", out)
    assert fastervit("explain", photos / "0.png", *options).code == 0
    with Image.open(out) as small:
        assert small.height < 0.45 * small.width  # two rows of panels would be 0.62


def test_what_is_wrong_is_named(fails, checkpoint: Path, photos: Path, tmp_path: Path):
    image, ours = photos / "0.png", ("--checkpoint", checkpoint)
    out = ("--out", tmp_path / "x.png")
    fails("explain", tmp_path / "none.png", *ours, *out, says=["no image or folder", "none.png"])
    fails("explain", write_broken(tmp_path / "broken.png"), *ours, *out, code=3, says=["broken.png"])
    fails("explain", image, "--checkpoint", tmp_path / "none", *out, says=["no checkpoint at", "none"])
    fails("explain", image, *ours, *out, "--class", "cta", says=["--class cta", "did you mean cat?"])
    fails("explain", image, *ours, *out, "--class", "3", says=["--class 3", "from 0 to 2"])
    fails("explain", image, *ours, *out, "--stage", 4, says=["--stage 4", "0 to 3"])
    fails("explain", image, *ours, *out, "--device", "nowhere", says=["nowhere"])
    fails("explain", image, *ours, "--out", tmp_path / "x.jpg", says=["x.jpg does not end in .png", "x.png"])
    fails("explain", image, *ours, "--out", tmp_path, says=["is a folder", "explanation.png"])
    fails("explain", photos, *ours, "--out", image, says=["is a file; give a folder"])
    (tmp_path / "net.onnx").write_bytes(b"")
    fails("explain", image, "--checkpoint", tmp_path / "net.onnx", *out, says=["an exported network", "checkpoint"])
    assert not (tmp_path / "x.png").exists()


def test_a_network_of_timms_is_refused(fails, photos: Path, tmp_path: Path):
    network = timm.create_model("test_vit", num_classes=3)
    metadata = {"openfastervit": json.dumps({"model": "test_vit", "overrides": {"num_classes": 3}})}
    checkpoint = tmp_path / "timm.safetensors"
    save_file(network.state_dict(), checkpoint, metadata=metadata)
    fails("explain", photos / "0.png", "--checkpoint", checkpoint, says=["timm.safetensors holds a", "a FasterViT"])


def test_the_likeliest_class_is_the_default():
    model = pocket()
    x = torch.randn(1, 3, 64, 64)
    told = explain(model, x, torch.zeros(3, 64, 64, dtype=torch.uint8), ["ant", "bee", "cat"])
    assert told.target == int(model(x).argmax())


def test_classes_are_found():
    names = ["tench, Tinca tinca", "crane", "Crane", "crane bird, crane", "7", "3", "cat"]
    assert find_class("tench", names) == 0
    assert find_class("tinca TINCA", names) == 0
    assert find_class("crane", names) == 1
    assert find_class("Crane", names) == 2
    assert find_class("7", names) == 4  # a name first
    assert find_class("3", names) == 5
    assert find_class("0", names) == 0
    with pytest.raises(ValueError, match="--class CRANE is the name of 2 classes; give a number of 1, 2"):
        find_class("CRANE", names)
    with pytest.raises(ValueError, match="none of the network's 7 classes"):
        find_class("12", names)
    with pytest.raises(ValueError, match="none of the network's 7 classes"):
        find_class("\u00b2", names)
