"""Images in memory are answered as those on disk are, whatever the checkpoint was trained for."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import openfastervit_cli
from openfastervit.data.images import ImageError
from openfastervit.inference import Predictor, images_in_memory
from openfastervit.inference.dense_predictor import open_detector, open_segmenter
from openfastervit.inference.images_in_memory import Masks, Objects, find_task, open_model
from tests.pocket import CLASSES, OPTIONS, picture, pocket, write_checkpoint
from tests.serving.http.running import write_detector, write_segmenter


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "classification": write_checkpoint(folder / "pocket.safetensors"),
        "detection": write_detector(folder / "detector.safetensors"),
        "segmentation": write_segmenter(folder / "segmenter.safetensors"),
    }


def test_the_task_is_the_checkpoints(files: dict[str, Path], tmp_path: Path) -> None:
    for task, file in files.items():
        assert find_task(file) == task
        with open_model(file, engine="auto" if task != "classification" else "torch-folded") as model:
            assert model.task == task
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_task(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx"):
        find_task(tmp_path / "nowhere.onnx")


def test_classes_are_those_of_files(files: dict[str, Path], tmp_path: Path) -> None:
    images = [picture(seed, (70 + 9 * seed, 90)) for seed in range(3)]
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    with Predictor.from_checkpoint(files["classification"]) as predictor:
        expected = list(predictor.predict(paths, topk=2))
    with open_model(files["classification"], engine="torch-folded") as model:
        assert (model.classes, model.engine_name) == (tuple(CLASSES), "torch-folded")
        found = model.run(images, topk=2)
        assert len(model.run(images[:1], topk=50)[0].names) == 3
        assert model.run([]) == []
        sent = pickle.loads(pickle.dumps(model.prepare))
        assert model.predict([sent(image) for image in images], topk=2) == found
    for answer, prediction in zip(found, expected, strict=True):
        assert (answer.names, answer.indices) == (prediction.classes, prediction.indices)
        assert answer.scores == pytest.approx(prediction.scores, abs=1e-6)


def test_a_network_for_grayscale_takes_any_image(tmp_path: Path) -> None:
    told = {"overrides": {**OPTIONS, "in_chans": 1}, "input": {"size": [1, 64, 64], "mean": [0.5], "std": [0.3]}}
    file = write_checkpoint(tmp_path / "gray.safetensors", pocket(in_chans=1), **told)
    with open_model(file, engine="torch-folded") as model:
        assert model.prepare.mode == "L"
        colour, gray = model.run([picture(1), picture(1).convert("L")])
    assert colour.scores == pytest.approx(gray.scores)


def test_objects_are_those_of_files(files: dict[str, Path]) -> None:
    image = picture(3, (120, 90))
    expected = open_detector(files["detection"]).detect(image, 0.4)
    with open_model(files["detection"]) as model:
        (found,) = model.run([image], score_threshold=0.4)
        (none,) = model.run([image], score_threshold=1.0)
    assert len(none.scores) == 0
    assert len(found.scores) == len(expected["scores"]) > 1
    np.testing.assert_allclose(found.boxes, expected["boxes"].numpy(), atol=1e-4)
    assert found.labels == tuple(expected["labels"].tolist())
    assert found.names == tuple(model.classes[label - 1] for label in found.labels)
    assert found.masks is not None
    np.testing.assert_array_equal(np.stack(found.masks), (expected["masks"][:, 0] > 0.5).numpy())


def test_labels_are_those_of_files(files: dict[str, Path]) -> None:
    image = picture(3, (120, 90))
    with open_model(files["segmentation"]) as model:
        (found,) = model.run([image])
    assert found.labels.dtype == np.uint8
    np.testing.assert_array_equal(found.labels, open_segmenter(files["segmentation"]).segment(image))


def test_large_images_are_looked_at_smaller(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back has the image's own size: as if the small one had been enlarged, answer and all."""
    monkeypatch.setattr(images_in_memory, "MAX_DENSE_PIXELS", 120 * 90)
    large = picture(3, (480, 360))
    small = large.resize((120, 90), Image.Resampling.BILINEAR, reducing_gap=2.0)
    with open_model(files["detection"]) as model:
        of_small, of_large = model.run([small, large], score_threshold=0.4)
    assert isinstance(of_large, Objects)
    np.testing.assert_allclose(of_large.boxes, of_small.boxes * 4, atol=1e-3)
    assert of_large.masks is not None
    assert of_small.masks is not None
    for mask, smaller in zip(of_large.masks, of_small.masks, strict=True):
        np.testing.assert_array_equal(mask, smaller.repeat(4, 0).repeat(4, 1))
    with open_model(files["segmentation"]) as model:
        labels, enlarged = model.run([small, large])
    np.testing.assert_array_equal(enlarged.labels, labels.labels.repeat(4, 0).repeat(4, 1))


def test_masks_are_a_sequence() -> None:
    drawn = np.random.default_rng(0).random((3, 4, 5)) > 0.5
    masks = Masks(drawn, (8, 10))
    assert len(masks) == 3
    assert len(masks[1:]) == 2
    np.testing.assert_array_equal(masks.chosen([2, 0])[1], drawn[0].repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(np.stack(masks[1:])[0], masks[1])


def test_thin_strips_and_wrong_numbers_are_named(files: dict[str, Path]) -> None:
    with open_model(files["classification"], engine="torch-folded") as model:
        with pytest.raises(ImageError, match="thin a strip"):
            model.run([Image.new("RGB", (30_000_000, 1))])
        for wrong in ({"topk": 0}, {"score_threshold": 2.0}, {"score_threshold": float("nan")}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                model.run([picture()], **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_options_that_a_task_does_not_know_are_refused(files: dict[str, Path], task: str) -> None:
    for wrong in ({"engine": "openvino"}, {"precision": "fp16"}, {"img_size": [64]}):
        with pytest.raises(ValueError, match=f"{task}.*{next(iter(wrong))}"):
            open_model(files[task], **wrong)  # type: ignore[arg-type]
    open_model(files[task], engine="torch-eager").close()


def test_exported_networks_are_opened_by_what_they_are_for(files: dict[str, Path], tmp_path: Path) -> None:
    file, out = files["segmentation"], tmp_path / "segmenter.onnx"
    assert openfastervit_cli.main(["export", "--checkpoint", str(file), "--to", "onnx", "--out", str(out)]) == 0
    assert find_task(out) == "segmentation"
    image = picture(2, (64, 64))
    with open_model(out) as exported, open_model(file) as model:
        assert (exported.engine_name, exported.classes) == ("onnxruntime", model.classes)
        (found,), (expected,) = exported.run([image]), model.run([image])
    assert (found.labels == expected.labels).mean() > 0.99
