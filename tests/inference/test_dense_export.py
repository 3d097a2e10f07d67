"""Exported detectors and segmenters give what the networks give; what would not is refused."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional as transforms

from openfastervit.inference import dense_export
from openfastervit.inference.dense import Detector, Segmenter
from openfastervit.inference.dense_comparison import DetectionComparison, matched
from openfastervit.inference.dense_export import (
    DensePlan,
    DenseReport,
    ExportedDetector,
    ExportedSegmenter,
    ExportError,
    default_size,
    export_detector,
    export_segmenter,
)
from openfastervit.inference.dense_file import DenseAbout
from openfastervit.inference.dense_predictor import DetectionPredictor, SegmentationPredictor
from openfastervit.inference.engines import EngineError
from openfastervit.inference.export import Comparison
from openfastervit.inference.exported import SUFFIXES, ExportedFileError
from openfastervit.inference.exported_dense import fitted
from openfastervit.inference.openvino_core import openvino_core
from openfastervit.tasks.detection.networks import DetectorPlan
from openfastervit.tasks.segmentation.task import SegmenterPlan
from tests.inference.lively import difference
from tests.inference.lively_dense import CATEGORY_IDS, CLASSES, COLOURS, detr, image, plain, rcnn, segmenter
from tests.pocket import picture

SHAPES = [(96, 128), (128, 96), (160, 224)]
FORMATS = ("onnx", "openvino")
every_file = pytest.mark.parametrize(("to", "shape"), [(to, shape) for shape in SHAPES for to in FORMATS], ids=str)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def detector(model: Any = None, *, head: Any = "cascade-mask-rcnn", shape: tuple[int, int] = SHAPES[0]) -> Detector:
    """As ``load_detector`` gives it, for images that are scaled to fill a shape."""
    sizes = {"min_size": (min(shape),), "max_size": max(shape)}
    plan = DetectorPlan(
        model="fastervit_0",
        head=head,
        num_classes=len(CLASSES),
        min_sizes=sizes["min_size"],
        max_size=sizes["max_size"],
        **COLOURS,
    )
    return Detector(rcnn(head, **sizes) if model is None else model, plan, CLASSES, CATEGORY_IDS)


def segmenting(head: Any = "upernet", crop: tuple[int, int] = SHAPES[0]) -> Segmenter:
    """As ``load_segmenter`` gives it."""
    plan = SegmenterPlan(model="fastervit_0", head=head, num_classes=len(CLASSES) + 1)
    mean, std = (tuple(COLOURS[name]) for name in ("mean", "std"))
    return Segmenter(segmenter(head), plan, ("ground", *CLASSES), mean, std, crop, None)


class File(NamedTuple):
    path: Path
    report: DenseReport


class Files(dict[Any, File]):
    """By format and shape, each written when it is first asked for."""

    def __init__(self, write: Callable[[Any, Any], File]) -> None:
        super().__init__()
        self.write = write

    def __missing__(self, key: Any) -> File:
        self[key] = self.write(*key)
        return self[key]


def real(shape: tuple[int, int]) -> list[Image.Image]:
    """What an export at that shape is compared on."""
    return [picture(1, (150, 90))] if shape == SHAPES[0] else []


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A Cascade Mask R-CNN."""
    traced: dict[Any, Any] = {}
    trace = dense_export.detector_to_onnx

    def once(graph: Any, size: Any) -> Any:
        if size not in traced:
            traced[size] = trace(graph, size)
        return traced[size]

    def write(to: Any, shape: Any) -> File:
        path = tmp_path_factory.mktemp("detector") / f"detector{SUFFIXES[to]}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dense_export, "detector_to_onnx", once)  # it takes most of the time
            plan = DensePlan(to, size=shape)
            return File(path, export_detector(detector(shape=shape), path, plan, images=real(shape)))

    return Files(write)


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A UPerNet."""

    def write(to: Any, shape: Any) -> File:
        path = tmp_path_factory.mktemp("segmenter") / f"segmenter{SUFFIXES[to]}"
        return File(path, export_segmenter(segmenting(), path, DensePlan(to, size=shape), images=real(shape)))

    return Files(write)


def run(path: Path, **inputs: Tensor) -> dict[str, Tensor]:
    """The outputs, by the format's own library."""
    arrays = {name: value.numpy() for name, value in inputs.items()}
    if path.suffix == ".onnx":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return {name: torch.from_numpy(value) for name, value in zip(names, session.run(None, arrays), strict=True)}
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino_core().compile_model(path, "CPU", settings)
    found = compiled(arrays)
    return {
        name: torch.from_numpy(found[output])
        for output in compiled.outputs
        for name in output.get_names()
        if name in ("boxes", "scores", "labels", "count", "masks", "logits")
    }


def same(found: dict[str, Tensor], expected: dict[str, Tensor], *, pixels: float = 1e-3) -> None:
    """Detections are the same, but for the order of those that score the same but for rounding."""
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=2e-5)
    rows, columns = matched(found, expected)
    assert len(rows) == len(expected["scores"])
    torch.testing.assert_close(found["boxes"][rows], expected["boxes"][columns], rtol=0, atol=pixels)
    masks = expected["masks"][columns].reshape(found["masks"][rows].shape)
    torch.testing.assert_close(found["masks"][rows], masks, rtol=0, atol=1e-4)


# --- Detectors --------------------------------------------------------------------------------------------------------


@every_file
def test_a_detector(detectors: Files, to: str, shape: tuple[int, int]) -> None:
    path, report = detectors[to, shape]
    model = detector(shape=shape).model
    for inner in (shape, (shape[0] - 21, shape[1] - 9)):
        images = image(shape, inner)
        expected = plain(model, images, inner)
        assert len(expected["scores"]) == 100
        assert len(expected["labels"].unique()) == 3
        outputs = run(path, images=images, size=torch.tensor(inner))
        assert outputs["boxes"].shape == (100, 4)
        assert outputs["masks"].shape == (100, 28, 28)
        assert outputs["labels"].dtype == torch.int64
        assert int(outputs.pop("count")) == 100
        same(outputs, expected)
    assert sorted(path.parent.iterdir()) == sorted(report.files)
    assert report.files[0] == path


@every_file
def test_detecting_in_a_picture(detectors: Files, to: str, shape: tuple[int, int]) -> None:
    """As the network itself does, where that pads no less than the file."""
    told = detector(shape=shape)
    exported = ExportedDetector(detectors[to, shape].path)
    assert (exported.classes, exported.category_ids) == (CLASSES, CATEGORY_IDS)
    photo = picture(2, (2 * shape[1], 2 * shape[0]))
    expected = DetectionPredictor(told, "cpu").detect(photo, 0.4)
    assert 5 < len(expected["scores"]) < 100
    found = exported.detect(photo, 0.4)
    assert found["masks"].shape == (len(found["scores"]), 1, photo.height, photo.width)
    same(found, expected, pixels=2e-3)

    other = picture(3, (111, 100))  # of another shape, in a batch with an image that fills the file's
    batch = [transforms.to_dtype(transforms.pil_to_tensor(other), torch.float32, scale=True), torch.zeros(3, *shape)]
    with torch.no_grad():
        expected = told.model(batch)[0]
    if shape != (128, 96):  # torchvision scales what is wider than high as if the file were so
        same(exported.detect(other, 0.0), expected, pixels=2e-3)
    else:
        found = exported.detect(other, 0.0)
        assert found["boxes"].max() <= 111
        assert found["boxes"][:, 3].max() > 90


@pytest.mark.parametrize("to", FORMATS)
def test_what_a_detector_is_compared_on(detectors: Files, to: str) -> None:
    found = detectors[to, SHAPES[0]].report.comparisons
    assert [one.images for one in found] == ["random", "real"]
    for one, count in zip(found, (200, 100), strict=True):
        assert isinstance(one, DetectionComparison)
        assert (one.size, one.detections, one.agreement) == (SHAPES[0], count, 1.0)
        assert 0 < one.boxes < 2e-3
        assert 0 < one.scores < 2e-5
        assert 0 < one.masks < 1e-4


def test_what_is_written_beside_a_detector(detectors: Files) -> None:
    path, report = detectors["onnx", (160, 224)]
    (entry,) = [entry.value for entry in onnx.load(path).metadata_props if entry.key == "openfastervit"]
    told = json.loads(entry)
    versions = told["export"].pop("versions")
    assert versions["torch"] == torch.__version__.partition("+")[0]
    assert told == {
        "task": "detection",
        "model": "fastervit_0",
        "head": "cascade-mask-rcnn",
        "classes": list(CLASSES),
        "category_ids": list(CATEGORY_IDS),
        "input": {"size": [3, 160, 224], **COLOURS, "resize": "fit"},
        "export": {"format": "onnx", "precision": "fp32", "size": [160, 224], "preprocessing": False},
    }
    for to in FORMATS:
        assert ExportedDetector(detectors[to, (160, 224)].path).file.about.size == (160, 224)
    assert report.about.classes == CLASSES


@pytest.mark.parametrize("part", ["rpn", "boxes", "masks"])
def test_a_detector_that_would_differ_is_not_written(
    detectors: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    other = detector()
    heads = other.model.roi_heads
    layer = {
        "rpn": other.model.rpn.head.bbox_pred,
        "boxes": heads.stages[1].box_predictor.bbox_pred,
        "masks": heads.mask_predictor.mask_fcn_logits,
    }[part]
    with torch.no_grad():
        layer.weight.mul_(0.9)
    graph = onnx_ir.load(detectors["onnx", SHAPES[0]].path)
    monkeypatch.setattr(dense_export, "detector_to_onnx", lambda *args: graph)
    with pytest.raises(ExportError, match="its masks differ" if part == "masks" else "of its detections are the"):
        export_detector(other, tmp_path / "detector.onnx", DensePlan("onnx", size=SHAPES[0]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rt-detr", "d-fine", "deformable-detr"])
def test_a_detection_transformer(tmp_path: Path, kind: str) -> None:
    told = detector(detr(kind), head=kind)
    photo = picture(2, (256, 192))
    expected = DetectionPredictor(told, "cpu").detect(photo, 0.0)
    for to in FORMATS:
        report = export_detector(told, tmp_path / f"detector{SUFFIXES[to]}", DensePlan(to, size=(96, 128)))
        found = ExportedDetector(report.files[0]).detect(photo, 0.0)
        rows, columns = matched(found, expected)
        assert len(rows) == len(expected["scores"]) == 36
        torch.testing.assert_close(found["boxes"][rows], expected["boxes"][columns], rtol=0, atol=2e-3)
        torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(96, 128), (128, 96), (160, 160)])
@pytest.mark.parametrize("resize", ["fit", "stretch"])
def test_pictures_are_prepared_as_torchvision_does(size: tuple[int, int], resize: Any) -> None:
    mean, std = (tuple(COLOURS[name]) for name in ("mean", "std"))
    told = ("fastervit_0", "cascade-mask-rcnn", CLASSES, CATEGORY_IDS)
    about = DenseAbout("detection", "onnx", "fp32", *told, size, resize, mean, std)
    for photo in (picture(1, (150, 90)), picture(2, (61, 173)), picture(3, (128, 96))):
        found, (height, width) = fitted(photo, about)
        pixels = transforms.to_dtype(transforms.pil_to_tensor(photo), torch.float32, scale=True)
        fixed = (size[1], size[0]) if resize == "stretch" else None
        # torchvision's bounds are of the short and the long side, ours of height and width.
        scale = min(size[0] / photo.height, size[1] / photo.width)
        shorter = min(photo.size) * scale
        transform = GeneralizedRCNNTransform(shorter, 10_000, COLOURS["mean"], COLOURS["std"], fixed_size=fixed)
        (expected,), (inside,) = (lambda batch: (batch.tensors, batch.image_sizes))(transform.eval()([pixels])[0])
        assert (height, width) == inside
        assert found.shape == (1, 3, *size)
        torch.testing.assert_close(found[0, :, :height, :width], expected[:, :height, :width], rtol=0, atol=1e-5)
        assert found[0, :, height:].abs().sum() == found[0, :, :, width:].abs().sum() == 0
    found, inside = fitted(picture(4, (5000, 3)), about)  # of which torchvision would leave nothing
    assert found.shape == (1, 3, *size)
    if resize == "fit":
        assert inside[0] == 1
        assert inside[1] in (size[1] - 1, size[1])  # rounded down, as torchvision does
    else:
        assert inside == size


def test_sizes() -> None:
    told = detector()
    plan = DetectorPlan(
        model="fastervit_0", head="cascade-mask-rcnn", num_classes=3, min_sizes=(480, 800), max_size=1333, **COLOURS
    )
    assert default_size(Detector(told.model, plan, CLASSES, CATEGORY_IDS)) == (800, 1344)
    stretching = detector(detr("rt-detr", fixed_size=(96, 160)), head="rt-detr")
    assert default_size(stretching) == (96, 160)


# --- Segmenters -------------------------------------------------------------------------------------------------------


@every_file
def test_a_segmenter(segmenters: Files, to: str, shape: tuple[int, int]) -> None:
    path, report = segmenters[to, shape]
    told = segmenting()
    for batch in (1, 2):
        images = torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = told.model(images)
        assert expected.std() > 0.1
        assert len(expected.argmax(1).unique()) > 1
        (found,) = run(path, images=images).values()
        assert found.shape == (batch, 4, *shape)
        assert difference(found, expected) < 1e-5
    assert sorted(path.parent.iterdir()) == sorted(report.files)
    for one in report.comparisons:
        assert isinstance(one, Comparison)
        assert 0 < one.difference < 1e-5
    assert [(one.images, one.batch_size) for one in report.comparisons] == [
        ("random", 1),
        ("random", 3),
        *([("real", 1)] if shape == SHAPES[0] else []),
    ]


@every_file
def test_segmenting_a_picture(segmenters: Files, to: str, shape: tuple[int, int]) -> None:
    told = segmenting()
    exported = ExportedSegmenter(segmenters[to, shape].path)
    assert exported.classes == ("ground", *CLASSES)
    plainly = SegmentationPredictor(told, device="cpu")
    photo = picture(4, (shape[1], shape[0]))
    expected = plainly.segment(photo)
    found = exported.segment(photo)
    assert found.dtype == expected.dtype == np.uint8
    assert (found == expected).mean() > 0.999

    larger = picture(5, (201, 170))  # is stretched, and its scores are
    pixels = transforms.to_dtype(
        transforms.pil_to_tensor(transforms.resize(larger, list(shape), antialias=True)), torch.float32, scale=True
    )
    with torch.no_grad():
        scores = told.model(transforms.normalize(pixels, **COLOURS)[None])
    labels = F.interpolate(scores, (170, 201), mode="bilinear", align_corners=False)[0].argmax(0)
    assert (exported.segment(larger) == labels.numpy()).mean() > 0.999


@pytest.mark.parametrize("to", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_half_precision(tmp_path: Path, segmenters: Files, to: Any) -> None:
    report = export_segmenter(segmenting(), tmp_path / f"half{SUFFIXES[to]}", DensePlan(to, "fp16", SHAPES[0]))
    assert all(1e-5 < one.difference < 0.02 for one in report.comparisons)
    whole = sum(file.stat().st_size for file in segmenters[to, SHAPES[0]].report.files)
    assert sum(file.stat().st_size for file in report.files) < 0.9 * whole
    assert ExportedSegmenter(report.files[0]).segment(picture(4)).shape == (80, 100)


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
def test_mask2former(tmp_path: Path, to: Any) -> None:
    told = segmenting("mask2former")
    report = export_segmenter(told, tmp_path / f"file{SUFFIXES[to]}", DensePlan(to))
    assert report.about.size == SHAPES[0]
    images = torch.randn(2, 3, *SHAPES[0])
    with torch.no_grad():
        assert difference(run(report.files[0], images=images)["logits"], told.model(images)) < 1e-5


def test_a_segmenter_that_would_differ_is_not_written(
    tmp_path: Path, segmenters: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx.load(segmenters["onnx", SHAPES[0]].path)
    monkeypatch.setattr(dense_export.graphs, "to_onnx", lambda *args: None)
    monkeypatch.setattr(dense_export, "_save_onnx", lambda none, about, path: onnx.save(graph, path))
    told = segmenting()
    with torch.no_grad():
        told.model.network.decode_head.classifier.weight.mul_(1.01)
    with pytest.raises(ExportError, match=r"scores differ from the network's by 0\.0"):
        export_segmenter(told, tmp_path / "a.onnx", DensePlan("onnx", size=SHAPES[0]))
    assert list(tmp_path.iterdir()) == []


# --- What cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "out", "says"),
    [
        ({"to": "torch"}, "a.pt2", "detectors are exported to onnx and openvino alone"),
        ({"to": "onnx", "precision": "fp16"}, "a.onnx", "precision='fp16': detectors are exported in fp32 alone"),
        ({"to": "onnx", "size": (100, 130)}, "a.onnx", "multiples of 32, such as 128 x 160"),
        ({"to": "onnx", "size": (16, 128)}, "a.onnx", "sides are at least 32"),
        ({"to": "openvino"}, "a.onnx", "does not end in .xml"),
    ],
)
def test_refused_detectors(tmp_path: Path, plan: Any, out: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        export_detector(detector(), tmp_path / out, DensePlan(**plan))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"to": "tensorrt"}, "segmenters are exported to onnx and openvino alone"),
        ({"to": "onnx", "precision": "int8"}, "segmenters are exported in fp32 and fp16 alone"),
    ],
)
def test_refused_segmenters(tmp_path: Path, plan: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        export_segmenter(segmenting(), tmp_path / "a.onnx", DensePlan(**plan))


@pytest.mark.parametrize("to", FORMATS)
def test_files_for_another_task(detectors: Files, segmenters: Files, to: str) -> None:
    with pytest.raises(ExportedFileError, match="exported for segmentation, not detection; use `fastervit segment"):
        ExportedDetector(segmenters[to, SHAPES[0]].path)
    with pytest.raises(ExportedFileError, match="exported for detection, not segmentation; use `fastervit detect"):
        ExportedSegmenter(detectors[to, SHAPES[0]].path)
    with pytest.raises(EngineError, match="runs on the CPU here, not on 'cuda'"):
        ExportedSegmenter(segmenters[to, SHAPES[0]].path, device="cuda")


def test_files_that_are_not_ours(segmenters: Files, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no exported network at"):
        ExportedSegmenter(tmp_path / "none.onnx")
    with pytest.raises(ExportedFileError, match="by its name"):
        ExportedSegmenter(tmp_path / "none.pt2")
    for name in ("broken.onnx", "broken.xml"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ExportedFileError, match="damaged"):
            ExportedSegmenter(tmp_path / name)
    graph = onnx.load(segmenters["onnx", SHAPES[0]].path)
    told = json.loads(graph.metadata_props[0].value)
    cases: list[tuple[Any, str]] = [
        (None, "was not made by"),
        ("{", "its metadata is damaged"),
        ([], "its metadata is damaged"),
        ({**told, "task": "classification"}, "exported for classification, not segmentation; use `fastervit predict`"),
        ({**told, "input": {}}, "its metadata is damaged"),
        ({**told, "classes": []}, "its values are impossible"),
        ({**told, "input": {**told["input"], "resize": "crop"}}, "its values are impossible"),
        ({**told, "category_ids": [1, 2, 3, 4]}, "its values are impossible"),
    ]
    for content, says in cases:
        changed = copy.deepcopy(graph)
        del changed.metadata_props[:]
        if content is not None:
            onnx.helper.set_model_props(
                changed, {"openfastervit": content if isinstance(content, str) else json.dumps(content)}
            )
        onnx.save(changed, tmp_path / "changed.onnx")
        with pytest.raises(ExportedFileError, match=says):
            ExportedSegmenter(tmp_path / "changed.onnx")
