import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

from openfastervit import CheckpointError, UnknownModelError, save_checkpoint
from openfastervit.inference import Failure, Prediction, Predictor, load_classifier, preparation
from openfastervit.inference.pipeline import AHEAD
from openfastervit.models import fastervit
from tests.inference.stub import Stub
from tests.pocket import CLASSES, INPUT, OPTIONS, picture, pocket, write_broken, write_checkpoint, write_photos


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "pocket.safetensors")


@pytest.fixture
def fastervit_0_in_the_pocket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name ``fastervit_0`` stands for the pocket network, so that files without metadata are small too."""
    monkeypatch.setitem(fastervit.VARIANTS, "fastervit_0", {k: v for k, v in OPTIONS.items() if k != "num_classes"})


def by_hand(
    model: nn.Module, path: Path, size: tuple[int, int] = (64, 64), mode: str = "RGB", **changes
) -> torch.Tensor:
    """Probabilities of one image: Pillow, timm's transform, the network, nothing of ours between."""
    transform = create_transform(
        input_size=(3, *size),
        **{"mean": INPUT["mean"], "std": INPUT["std"], "interpolation": "bicubic", "crop_pct": 0.9, **changes},
    )
    with Image.open(path) as image, torch.no_grad():
        return model(transform(image.convert(mode))[None])[0].softmax(0)


def agrees(prediction: Prediction | Failure, expected: torch.Tensor) -> bool:
    assert isinstance(prediction, Prediction)
    order = expected.argsort(descending=True)[: len(prediction.scores)]
    return prediction.indices == tuple(order.tolist()) and torch.allclose(
        torch.tensor(prediction.scores), expected[order], atol=1e-5
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_predictions_are_those_computed_by_hand(tmp_path: Path, checkpoint: Path, batch_size: int):
    photos = write_photos(tmp_path)
    results = list(Predictor.from_checkpoint(checkpoint).predict(photos, topk=2, batch_size=batch_size))
    model = pocket()
    assert [result.path for result in results] == photos
    for result in results:
        assert len(result.classes) == 2
        assert result.classes == tuple(CLASSES[i] for i in result.indices)
        assert agrees(result, by_hand(model, result.path))


def test_images_come_in_order_however_long_they_take(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    photos = write_photos(tmp_path, 6)
    open_image = preparation.open_image

    def slow_first(path: Path, mode: str):
        time.sleep(0.2 if path == photos[0] else 0)
        return open_image(path, mode)

    monkeypatch.setattr(preparation, "open_image", slow_first)
    results = Predictor.from_checkpoint(checkpoint).predict(photos, batch_size=2, workers=4)
    assert [result.path for result in results] == photos


@pytest.mark.parametrize("broken_at", [0, 2, 4])
def test_a_broken_image_fails_alone(tmp_path: Path, checkpoint: Path, broken_at: int):
    photos = write_photos(tmp_path)
    write_broken(photos[broken_at], photos[broken_at].suffix[1:])
    results = list(Predictor.from_checkpoint(checkpoint).predict(photos, batch_size=2))
    assert [result.path for result in results] == photos
    assert [i for i, result in enumerate(results) if isinstance(result, Failure)] == [broken_at]
    assert "does not decode" in results[broken_at].reason
    whole = results[(broken_at + 1) % 5]
    assert agrees(whole, by_hand(pocket(), whole.path))


def test_a_batch_of_broken_images_fails_whole(tmp_path: Path, checkpoint: Path):
    broken = [write_broken(tmp_path / f"{i}.png") for i in range(3)]
    results = list(Predictor.from_checkpoint(checkpoint).predict(broken, batch_size=2))
    assert [type(result) for result in results] == [Failure] * 3


def test_a_thin_strip_fails_instead_of_filling_the_memory(tmp_path: Path, checkpoint: Path):
    Image.new("RGB", (60_000, 1)).save(tmp_path / "strip.png")
    Image.new("RGB", (600, 10)).save(tmp_path / "panorama.png")
    strip, panorama = Predictor.from_checkpoint(checkpoint).predict([tmp_path / "strip.png", tmp_path / "panorama.png"])
    assert isinstance(strip, Failure)
    assert "60000 x 1" in strip.reason
    assert isinstance(panorama, Prediction)


def test_there_are_no_more_classes_than_the_network_has(tmp_path: Path, checkpoint: Path):
    (result, *_) = Predictor.from_checkpoint(checkpoint).predict(write_photos(tmp_path), topk=99)
    assert sorted(result.classes) == CLASSES
    assert sum(result.scores) == pytest.approx(1, abs=1e-5)


def test_images_are_read_as_they_are_needed(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder may be larger than memory, and its reader may stop early."""
    photo = write_photos(tmp_path)[0]
    opened = []
    open_image = preparation.open_image
    monkeypatch.setattr(preparation, "open_image", lambda *args: opened.append(args) or open_image(*args))
    results = Predictor.from_checkpoint(checkpoint).predict([photo] * 100, batch_size=4, workers=2)
    next(results)
    results.close()
    assert 4 <= len(opened) <= 4 * (1 + AHEAD)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("load", "run"))]


@pytest.mark.parametrize("name", ["topk", "batch_size", "workers"])
def test_numbers_below_one_are_refused_at_once(checkpoint: Path, name: str):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        Predictor.from_checkpoint(checkpoint).predict([], **{name: 0})


def test_too_large_a_batch_says_so(tmp_path: Path, checkpoint: Path):
    predictor = Predictor.from_checkpoint(checkpoint)

    class Full(Stub):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    predictor.engine = Full()
    with pytest.raises(ValueError, match="batch of 5 images does not fit"):
        list(predictor.predict(write_photos(tmp_path)))


@pytest.mark.parametrize("device", ["cuda:63", "nonsense"])
def test_a_device_that_is_not_there_is_an_error(checkpoint: Path, device: str):
    with pytest.raises(ValueError, match=f"device='{device}' is not to be had here"):
        Predictor.from_checkpoint(checkpoint, device=device)


def test_another_image_size(tmp_path: Path, checkpoint: Path):
    photos = write_photos(tmp_path)
    results = list(Predictor.from_checkpoint(checkpoint, img_size=[96, 128]).predict(photos))
    model = pocket()
    assert all(agrees(result, by_hand(model, result.path, size=(96, 128))) for result in results)


def test_the_checkpoints_preparation_is_used(tmp_path: Path):
    told = {**INPUT, "size": [3, 48, 80], "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    path = write_checkpoint(tmp_path / "squash.safetensors", input=told)
    model = pocket()
    for result in Predictor.from_checkpoint(path).predict(write_photos(tmp_path)):
        by_timm = by_hand(model, result.path, (48, 80), interpolation="bilinear", crop_pct=1.0, crop_mode="squash")
        assert agrees(result, by_timm)


def test_one_channel_gets_grayscale(tmp_path: Path):
    model = pocket(in_chans=1)
    told = {**INPUT, "size": [1, 64, 64], "mean": [0.3], "std": [0.2]}
    path = write_checkpoint(tmp_path / "gray.safetensors", model, overrides={**OPTIONS, "in_chans": 1}, input=told)
    for result in Predictor.from_checkpoint(path).predict(write_photos(tmp_path)):
        with Image.open(result.path) as image, torch.no_grad():
            pixels = create_transform(
                input_size=(1, 64, 64), mean=(0.3,), std=(0.2,), interpolation="bicubic", crop_pct=0.9
            )
            expected = model(pixels(image.convert("L"))[None])[0].softmax(0)
        assert agrees(result, expected)


def test_without_a_registered_name_the_options_define_the_network(tmp_path: Path):
    path = save_checkpoint(pocket(), tmp_path / "own.safetensors", metadata={"model": None, "overrides": OPTIONS})
    classifier = load_classifier(path)
    assert classifier.classes == ("0", "1", "2")
    assert not classifier.model.training
    assert classifier.preparation["input_size"] == (3, 64, 64)  # what the saved network was built for


@pytest.mark.usefixtures("fastervit_0_in_the_pocket")
@pytest.mark.parametrize("wrapped", ["state_dict", "model", "module."])
def test_a_released_checkpoint_tells_its_classes_and_channels(tmp_path: Path, wrapped: str):
    model = pocket(num_classes=7, in_chans=1)
    weights = torch.load(save_checkpoint(model, tmp_path / "w.pth", layout="released"))["state_dict"]
    named = {f"module.{key}": value for key, value in weights.items()} if wrapped == "module." else {wrapped: weights}
    torch.save(named, tmp_path / "released.pth.tar")
    classifier = load_classifier(tmp_path / "released.pth.tar", "faster_vit_0_224")
    assert classifier.classes == tuple("0123456")
    # The released network's preparation, with its colour statistics averaged to one channel.
    assert classifier.preparation == {
        "input_size": (1, 224, 224),
        "interpolation": "bicubic",
        "mean": (pytest.approx(0.449),),
        "std": (pytest.approx(0.226),),
        "crop_pct": 0.875,
        "crop_mode": "center",
    }
    images = torch.randn(2, 1, 64, 64)
    assert torch.equal(classifier.model(images), model(images))


@pytest.mark.usefixtures("fastervit_0_in_the_pocket")
def test_a_thousand_unnamed_classes_are_imagenets(tmp_path: Path):
    path = save_checkpoint(pocket(num_classes=1000), tmp_path / "released.pth", layout="released")
    classes = load_classifier(path, "fastervit_0").classes
    assert len(classes) == 1000
    assert classes[0] == "tench, Tinca tinca"
    assert classes[574] == "golf ball"


def test_a_file_without_metadata_needs_a_name(tmp_path: Path):
    path = save_checkpoint(pocket(), tmp_path / "released.pth", layout="released")
    with pytest.raises(CheckpointError, match=r"released.pth: .*which network.*--model fastervit_0"):
        load_classifier(path)


def test_a_name_that_contradicts_the_file_is_refused(checkpoint: Path):
    with pytest.raises(CheckpointError, match="is a fastervit_0, not a fastervit_2"):
        load_classifier(checkpoint, "fastervit_2")
    with pytest.raises(UnknownModelError, match="fastervit_0"):
        load_classifier(checkpoint, "fastervit0")
    assert load_classifier(checkpoint, "faster_vit_0_224").classes == tuple(CLASSES)


def test_a_backbone_has_nothing_to_predict(tmp_path: Path):
    options = {**OPTIONS, "num_classes": 0}
    path = write_checkpoint(tmp_path / "backbone.safetensors", pocket(num_classes=0), overrides=options)
    with pytest.raises(CheckpointError, match="backbone without a classifier"):
        load_classifier(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"classes": ["ant", "bee"]}, "names 2 classes, its classifier has 3"),
        (
            {"overrides": {**OPTIONS, "num_classes": 5}},
            r"head.fc.(weight|bias) has shape \[3.*needs \[5.*has 3 classes",
        ),
        ({"overrides": {**OPTIONS, "in_chans": 1}}, "stem.conv1.weight has shape"),
        ({"overrides": {**OPTIONS, "dims": 8}}, "unknown option 'dims'.*did you mean dim"),
        ({"overrides": {**OPTIONS, "depths": [1]}}, "cannot be built: depths"),
        ({"model": "fastervit_9"}, "cannot be built: unknown model 'fastervit_9'; did you mean"),
        ({"overrides": [1]}, "metadata is damaged: overrides"),
        ({"input": {"size": [64, 64]}}, "metadata is damaged: the input size"),
        ({"model": 7}, "metadata is damaged: model"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, metadata: dict, message: str):
    path = write_checkpoint(tmp_path / "odd.safetensors", **metadata)
    with pytest.raises(CheckpointError, match=f"odd.safetensors: .*{message}"):
        load_classifier(path)


def test_five_channels_are_no_image(tmp_path: Path):
    model = pocket(in_chans=5)
    told = {**INPUT, "size": [5, 64, 64], "mean": [0.5] * 5, "std": [0.5] * 5}
    path = write_checkpoint(tmp_path / "five.safetensors", model, overrides={**OPTIONS, "in_chans": 5}, input=told)
    with pytest.raises(ValueError, match=r"five.safetensors: the network takes 5 channels; images have 3, or 1"):
        Predictor.from_checkpoint(path)


@pytest.mark.parametrize("size", [[16], [64, 31], [64, 64, 3]])
def test_sizes_that_no_network_takes_are_refused(checkpoint: Path, size: list[int]):
    with pytest.raises(ValueError, match="at least 32"):
        Predictor.from_checkpoint(checkpoint, img_size=size)


def test_an_upright_picture_is_predicted_from_a_turned_file(tmp_path: Path, checkpoint: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "upright.png")
    picture().rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    upright, turned = Predictor.from_checkpoint(checkpoint).predict([tmp_path / "upright.png", tmp_path / "turned.png"])
    assert turned.scores == pytest.approx(upright.scores, abs=1e-6)
