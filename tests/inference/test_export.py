"""Exported files give the network's logits, in a process without this package; what would not is refused."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from openfastervit.inference import export as exporting
from openfastervit.inference.checkpoint import Classifier, load_classifier
from openfastervit.inference.engines import EngineError
from openfastervit.inference.export import (
    PRECISIONS,
    SUFFIXES,
    ExportError,
    Plan,
    export,
    is_exported,
    load_exported,
    normalised,
    open_exported,
    read_about,
)
from openfastervit.inference.exported import About, ExportedFileError
from openfastervit.inference.openvino_core import openvino_core
from tests.inference.elsewhere import run_elsewhere
from tests.inference.lively import difference, lively
from tests.networks import SCALED
from tests.pocket import CLASSES, OPTIONS, write_checkpoint

SIZE = (64, 64)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """With carriers, propagation and layer scale; its images are one window in stage 3 and several in stage 2."""
    file = tmp_path_factory.mktemp("exported") / "lively.safetensors"
    return load_classifier(write_checkpoint(file, lively(SCALED, **OPTIONS), model=SCALED))


def pixels(count: int, *size: int, seed: int = 0) -> Tensor:
    """Noise in which neither corners nor channels are alike."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, *(size or SIZE)), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def plain(classifier: Classifier, images: Tensor) -> Tensor:
    logits: Tensor = classifier.model(normalised(images, classifier))
    return logits


FILES = [
    ("onnx", SIZE, False),
    ("onnx", None, True),
    ("openvino", SIZE, True),
    pytest.param("openvino", None, False, marks=pytest.mark.slow),
    ("torch", SIZE, True),
    pytest.param("torch", None, False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("to", "size", "preprocessing"), FILES)
def test_runs_where_this_package_is_not(
    classifier: Classifier, tmp_path: Path, to: Any, size: tuple[int, int] | None, preprocessing: bool
) -> None:
    out = tmp_path / f"network{SUFFIXES[to]}"
    report = export(classifier, out, Plan(to, size=size, preprocessing=preprocessing), model=SCALED)
    assert report.files[0] == out
    assert sorted(tmp_path.iterdir()) == sorted(report.files)
    assert {one.batch_size for one in report.comparisons} == {1, 3}

    # White and black images: their borders, normalised, are far from the zeros that convolutions pad with.
    flat = torch.stack([torch.full((3, *SIZE), value, dtype=torch.uint8) for value in (0, 128, 255)])
    batches = [pixels(1), pixels(5), flat]
    if size is None:  # oblong, of no round numbers; one window in every stage where the format has that
        batches += [pixels(2, 113, 90), pixels(1, 70, 181)] + ([] if to == "torch" else [pixels(2, 33, 40)])
    inputs = batches if preprocessing else [normalised(batch, classifier) for batch in batches]
    found = run_elsewhere(out, inputs, tmp_path / "elsewhere")
    for batch, logits in zip(batches, found.logits, strict=True):
        assert difference(logits, plain(classifier, batch)) < 1e-5, list(batch.shape)
    if to != "torch":
        assert found.names == ("pixels" if preprocessing else "images", "logits")
    assert found.told["classes"] == CLASSES
    told = found.told["input"]
    assert isinstance(told, dict)
    assert told == {
        "size": [3, 64, 64],
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
    }

    exported = load_exported(out)
    assert exported.classes == classifier.classes
    assert exported.preparation == classifier.preparation
    images = normalised(batches[1], classifier)
    assert difference(exported.engine(images), plain(classifier, batches[1])) < 1e-5
    exported.engine.close()
    about = read_about(out)
    assert (about.size, about.preprocessing, about.model, about.precision) == (size, preprocessing, SCALED, "fp32")
    assert about.versions is not None
    assert about.versions["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize(
    ("to", "precision", "bound"),
    [
        ("onnx", "fp16", 0.01),
        pytest.param("openvino", "fp16", 0.01, marks=pytest.mark.slow),
        pytest.param("openvino", "bf16", 0.06, marks=pytest.mark.slow),
        pytest.param("torch", "fp16", 0.01, marks=pytest.mark.slow),
        ("torch", "bf16", 0.06),
    ],
)
def test_low_precision(classifier: Classifier, tmp_path: Path, to: Any, precision: Any, bound: float) -> None:
    out, plan = tmp_path / f"network{SUFFIXES[to]}", Plan(to, precision, SIZE)
    if to == "openvino" and precision.upper() not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(EngineError, match=f"no {precision} arithmetic"):
            export(classifier, out, plan)
        return
    report = export(classifier, out, plan)
    engine = open_exported(report.files[0])
    found = engine(normalised(pixels(4), classifier))
    assert found.dtype == torch.float32
    assert engine.precision == precision
    assert 1e-5 < difference(found, plain(classifier, pixels(4))) < bound
    if (to, precision) != ("openvino", "bf16"):  # that is a matter of how its file is compiled
        in_float32 = 4 * sum(parameter.numel() for parameter in classifier.model.parameters())
        assert sum(file.stat().st_size for file in report.files) < 0.9 * in_float32


@pytest.mark.parametrize(
    ("to", "preprocessing"),
    [
        ("onnx", True),
        pytest.param("onnx", False, marks=pytest.mark.slow),
        pytest.param("openvino", True, marks=pytest.mark.slow),
    ],
)
def test_int8(classifier: Classifier, tmp_path: Path, to: Any, preprocessing: bool) -> None:
    plan = Plan(to, "int8", SIZE, preprocessing)
    report = export(classifier, tmp_path / f"network{SUFFIXES[to]}", plan, pixels=pixels(40))
    real = [one for one in report.comparisons if one.images == "real"]
    assert [(one.batch_size, one.size) for one in real] == [(3, SIZE)]
    unseen = pixels(32, seed=1)
    images = unseen if preprocessing else normalised(unseen, classifier)
    (found,) = run_elsewhere(report.files[0], [images], tmp_path / "elsewhere").logits
    expected = plain(classifier, unseen)
    distance = (found.softmax(-1) - expected.softmax(-1)).abs().sum(-1).mean() / 2
    assert 0 < distance < 0.05
    if to == "onnx":
        import onnx

        kinds = [node.op_type for node in onnx.load(report.files[0]).graph.node]
        assert kinds.count("QuantizeLinear") > 20


# --- Refusals ---------------------------------------------------------------------------------------------------------


def _changed(change: Callable[[nn.Module], None]) -> Callable[..., nn.Module]:
    """``deployable`` with a mistake."""
    right = exporting.deployable

    def wrong(network: nn.Module, size: tuple[int, int] | None) -> nn.Module:
        made = right(network, size)
        with torch.no_grad():
            change(made)
        return made

    return wrong


def _one_weight(network: nn.Module) -> None:
    network.get_parameter("stages.2.1.blocks.0.attend.proj.weight").mul_(1.05)


def _not_a_number(network: nn.Module) -> None:
    network.get_parameter("fc.bias")[0] = float("nan")


@pytest.mark.parametrize(
    ("change", "shown", "to", "before"),
    [(_one_weight, r"by 0\.0", "onnx", b"an older file"), (_not_a_number, "by nan", "torch", None)],
)
def test_what_differs_is_refused(
    classifier: Classifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[nn.Module], None],
    shown: str,
    to: Any,
    before: bytes | None,
) -> None:
    monkeypatch.setattr(exporting, "deployable", _changed(change))
    out = tmp_path / f"network{SUFFIXES[to]}"
    if before is not None:
        out.write_bytes(before)
    with pytest.raises(ExportError, match=f"logits differ from the network's {shown}.*on random images of 64 x 64"):
        export(classifier, out, Plan(to, size=SIZE))
    assert list(tmp_path.iterdir()) == ([] if before is None else [out])
    assert before is None or out.read_bytes() == before


@pytest.mark.slow
def test_int8_that_loses_too_much_is_refused(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "MAX_DISTANCE", 1e-6)
    with pytest.raises(ExportError, match=r"class probabilities differ .* on real images"):
        export(classifier, tmp_path / "network.onnx", Plan("onnx", "int8", SIZE), pixels=pixels(40))
    assert list(tmp_path.iterdir()) == []


def test_interrupted_exports_leave_nothing(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(classifier: Classifier, about: About, path: Path, plan: Plan, pixels: Tensor | None) -> None:
        path.write_bytes(b"a network")

    def interrupt(*_: object) -> None:
        (folder,) = tmp_path.iterdir()
        assert [file.name for file in folder.iterdir()] == ["network.onnx"]
        raise KeyboardInterrupt

    monkeypatch.setitem(exporting._WRITERS, "onnx", write)
    monkeypatch.setattr(exporting, "_compare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(classifier, tmp_path / "network.onnx", Plan("onnx", size=SIZE))
    assert list(tmp_path.iterdir()) == []


def test_impossible_plans() -> None:
    with pytest.raises(ValueError, match=r"onnx in bf16 is not to be had: .* choose fp16, or export to openvino"):
        Plan("onnx", "bf16", SIZE)
    with pytest.raises(ValueError, match=r"torch in int8 .* export to onnx or openvino"):
        Plan("torch", "int8", SIZE)
    for to in ("onnx", "openvino", "torch", "tensorrt"):
        with pytest.raises(ValueError, match=rf"{to} in fp8 is not to be had: choose one of fp32, fp16"):
            Plan(to, "fp8", SIZE)  # type: ignore[arg-type]  # a loop's variable is any text
    with pytest.raises(ValueError, match="to='tflite' is unknown"):
        Plan("tflite", "fp32", SIZE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one size of images"):
        Plan("tensorrt", "fp32", None)
    for to, precisions in PRECISIONS.items():
        for precision in precisions:
            Plan(to, precision, SIZE)


def test_impossible_files(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not end in \.xml, as openvino files do; name it network\.xml"):
        export(classifier, tmp_path / "network.onnx", Plan("openvino", size=SIZE))
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        export(classifier, tmp_path / "folder.onnx", Plan("onnx", size=SIZE))
    with pytest.raises(ValueError, match="at least 16 real images, better 300, not 0"):
        export(classifier, tmp_path / "network.onnx", Plan("onnx", "int8", SIZE))
    with pytest.raises(ValueError, match="not 9"):
        export(classifier, tmp_path / "network.onnx", Plan("onnx", "int8", SIZE), pixels=pixels(9))


def test_tensorrt_is_named_where_it_is_missing(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorrt" else find_spec(name, *rest)
    )
    with pytest.raises(EngineError, match=r"needs tensorrt; install with: pip install 'openfastervit\[tensorrt\]'"):
        export(classifier, tmp_path / "network.engine", Plan("tensorrt", size=SIZE))
    assert list(tmp_path.iterdir()) == []


# --- Files as engines -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def onnx_file(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "network.onnx"
    report = export(classifier, out, Plan("onnx", size=SIZE), pixels=pixels(7))
    assert [one.images for one in report.comparisons] == ["random", "random", "real"]
    assert report.comparisons[-1].agreement == 1
    return out


@pytest.fixture(scope="session")
def program_file(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of open size, taking pixels."""
    out = tmp_path_factory.mktemp("program") / "network.pt2"
    export(classifier, out, Plan("torch", preprocessing=True))
    return out


@pytest.mark.early  # one process exports the files
def test_wrong_images_are_named(onnx_file: Path, program_file: Path) -> None:
    engine = open_exported(onnx_file)
    with pytest.raises(ValueError, match=r"expected images \(B, 3, 64, 64\), got \[2, 3, 32, 64\]"):
        engine(torch.zeros(2, 3, 32, 64))
    with pytest.raises(ValueError, match="floating point tensor, normalised, not"):
        engine(pixels(1))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine(torch.zeros(1, 3, *SIZE))
    program = open_exported(program_file)
    with pytest.raises(ValueError, match="expected images"):
        program(torch.zeros(1, 4, 99, 99))
    with pytest.raises(ValueError, match="takes no images of 20 x 64: Guard failed"):
        program(pixels(1, 20, 64))


@pytest.mark.early  # one process exports the files
def test_only_pixels_come_back_from_normalised_images(classifier: Classifier, program_file: Path) -> None:
    engine = open_exported(program_file)
    assert engine.name == "torch-program"
    batch = pixels(2, 100, 77)
    expected = plain(classifier, batch)
    assert difference(engine(batch), expected) < 1e-5
    assert torch.equal(engine(normalised(batch, classifier)), engine(batch))
    with pytest.raises(EngineError, match="takes 8-bit pixels, and these images are none"):
        engine(torch.randn(1, 3, 100, 77))


@pytest.mark.early  # one process exports the files
def test_files_that_are_none(classifier: Classifier, onnx_file: Path, program_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no exported network"):
        read_about(tmp_path / "none.onnx")
    with pytest.raises(ExportedFileError, match=r"ends in none of \.onnx, \.xml, \.pt2, \.engine"):
        read_about(tmp_path / "network.safetensors")
    assert is_exported("a/B.ONNX")
    assert not is_exported("a/b.safetensors")
    for whole in (onnx_file, program_file):
        broken = tmp_path / whole.name
        broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(ExportedFileError, match="damaged"):
            read_about(broken)
    (tmp_path / "network.xml").write_text("<net")
    with pytest.raises(ExportedFileError, match="damaged OpenVINO model"):
        read_about(tmp_path / "network.xml")

    import onnx

    foreign = onnx.load(onnx_file)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ExportedFileError, match="was not made by `fastervit export`"):
        load_exported(tmp_path / "foreign.onnx")
    foreign.metadata_props.add(key="openfastervit", value='{"classes": 3}')
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ExportedFileError, match=r"foreign\.onnx: its metadata is damaged"):
        load_exported(tmp_path / "foreign.onnx")


def test_what_files_say_of_themselves() -> None:
    preparation = {"input_size": (3, 64, 48), "mean": (0.5,) * 3, "std": (0.2,) * 3, "interpolation": "bicubic"}
    about = About("onnx", "fp16", ("<a&b>", "ü"), preparation, None, True, "fastervit_0", {"torch": "2"})
    assert About.from_json(about.to_json()) == about
    assert About.from_json(replace(about, size=(64, 48)).to_json()).size == (64, 48)
    told = json.loads(about.to_json())
    for path, value in (
        (("input", "std"), [0.1, 0, 0.1]),
        (("input", "mean"), [0.1]),
        (("input", "size"), [3, 0, 64]),
        (("input", "size"), None),
        (("export", "precision"), "fp8"),
        (("export", "size"), [64]),
        (("classes",), None),
    ):
        damaged = json.loads(json.dumps(told))
        place = damaged
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(ExportedFileError, match="damaged"):
            About.from_json(json.dumps(damaged))
    with pytest.raises(ExportedFileError, match="damaged"):
        About.from_json("[]")


# --- Other networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"), [("resnet10t", {}), ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)})]
)
def test_timms_networks(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=4, **options).eval()
    preparation = {"input_size": (3, *SIZE), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    classifier = Classifier(network, ("a", "b", "c", "d"), preparation)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    export(classifier, tmp_path / "network.onnx", Plan("onnx", size=SIZE))
    found = open_exported(tmp_path / "network.onnx")(normalised(pixels(3), classifier))
    assert difference(found, plain(classifier, pixels(3))) < 1e-5
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_real_photographs(classifier: Classifier, sample_data: Path, tmp_path: Path) -> None:
    files = sorted((sample_data / "imagenette-val-224").rglob("*.jpg"))
    found, failed = exporting.sample_pixels(files, classifier, 24)
    assert not failed
    assert found is not None
    assert found.shape == (24, 3, *SIZE)
    report = export(classifier, tmp_path / "network.onnx", Plan("onnx", "int8", SIZE, True), pixels=found)
    assert report.comparisons[-1].difference < 0.05
