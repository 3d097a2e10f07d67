"""Exported files: what is written in them beside the network, and running them.

Each format keeps one text of JSON under the name ``openfastervit``, of the form that checkpoints have (``classes``,
``input``) and an entry ``export``: ONNX in ``metadata_props``, OpenVINO in ``rt_info``, a torch program in
an extra file of its archive, a TensorRT plan in a file beside it.
"""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from openfastervit.inference.checkpoint import COMMANDS, MAX_SIDE
from openfastervit.inference.engines.engine import (
    Engine,
    EngineError,
    Precision,
    check_batch,
    require,
)
from openfastervit.inference.openvino_core import may_pin, openvino_core
from openfastervit.inference.preprocessing import PixelEngine

Format = Literal["onnx", "openvino", "torch", "tensorrt"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2", "tensorrt": ".engine"}
PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "torch": ("fp32", "fp16", "bf16"),
    "tensorrt": ("fp32", "fp16", "bf16"),
}
"""What each format can hold and run."""
_MOST_TEXT = 2**24
"""Bytes that are read of a text in a torch program: it may be compressed."""
KEY = "openfastervit"
"""Where files keep what is written beside the network."""


class ExportedFileError(ValueError):
    """An exported file cannot be used: the message says which and why."""


class Exported(NamedTuple):
    """A file's network with what is needed to use it, as ``load_classifier`` gives of a checkpoint."""

    engine: Engine
    classes: tuple[str, ...]
    """Names, in the order of the logits."""
    preparation: dict[str, Any]
    """Arguments of ``timm.data.create_transform``."""


@dataclass(frozen=True)
class About:
    """What an exported file says of itself."""

    format: Format
    precision: Precision
    classes: tuple[str, ...]
    preparation: dict[str, Any]
    size: tuple[int, int] | None
    """Height and width of the images; None for any."""
    preprocessing: bool
    """Whether it takes 8-bit pixels, and normalises them itself."""
    model: str | None = None
    versions: Mapping[str, str] | None = None

    def to_json(self) -> str:
        """The text that is kept in the file."""
        told = self.preparation
        size, mean, std = (list(told[key]) for key in ("input_size", "mean", "std"))
        rest = {key: told[key] for key in ("interpolation", "crop_pct", "crop_mode") if key in told}
        return json.dumps(
            {
                "model": self.model,
                "classes": list(self.classes),
                "input": {"size": size, "mean": mean, "std": std, **rest},
                "export": {
                    "format": self.format,
                    "precision": self.precision,
                    "size": None if self.size is None else list(self.size),
                    "preprocessing": self.preprocessing,
                    "versions": dict(self.versions or {}),
                },
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "About":
        """Read what ``to_json`` wrote.

        Raises:
            ExportedFileError: If it has another form.
        """
        try:
            about = cls._parsed(json.loads(text))
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise ExportedFileError(
                f"its metadata is damaged ({type(error).__name__}: {error}); export it again"
            ) from error
        channels, height, width = about.preparation["input_size"]
        deviations = about.preparation["std"]
        whole = len(about.preparation["mean"]) == len(deviations) == channels and min(deviations) > 0
        known = about.format in FORMATS and about.precision in PRECISIONS[about.format]
        sides = (height, width, *(about.size or ()))
        if not whole or not known or min(sides) < 1 or max(sides) > MAX_SIDE:
            raise ExportedFileError("its metadata is damaged: its values are impossible; export it again")
        return about

    @classmethod
    def _parsed(cls, told: Any) -> "About":
        export, input = told["export"], dict(told["input"])
        channels, height, width = (int(n) for n in input.pop("size"))
        mean, std = (tuple(float(n) for n in input.pop(key)) for key in ("mean", "std"))
        size = export["size"]
        return cls(
            format=export["format"],
            precision=export["precision"],
            classes=tuple(str(name) for name in told["classes"]),
            preparation={"input_size": (channels, height, width), "mean": mean, "std": std, **input},
            size=None if size is None else (int(size[0]), int(size[1])),
            preprocessing=bool(export["preprocessing"]),
            model=told.get("model"),
            versions=export.get("versions"),
        )


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether a path's name is that of an exported file, not of a checkpoint."""
    return Path(path).suffix.lower() in SUFFIXES.values()


def read_about(path: str | os.PathLike[str]) -> About:
    """What an exported file says of itself.

    Raises:
        FileNotFoundError: If there is no such file.
        ExportedFileError: If it was not exported by ``fastervit export``, or is damaged.
        EngineError: If its format's library is not installed.
    """
    path = Path(path)
    kind = _format_of(path)
    if not path.is_file():
        raise FileNotFoundError(f"no exported network at {path}; check the path")
    text = _READERS[kind](path)
    if text is None:
        raise ExportedFileError(f"{path} was not made by `fastervit export`: it does not tell its classes and images")
    task = _task_of(text)
    if task in COMMANDS:
        raise ExportedFileError(f"{path} was trained for {task}; use `fastervit {COMMANDS[task]} predict` with it")
    try:
        return About.from_json(text)
    except ExportedFileError as error:
        raise ExportedFileError(f"{path}: {error}") from error


def exported_task(path: str | os.PathLike[str]) -> str:
    """What an exported file was trained for: "detection", "segmentation", or else "classification".

    Raises:
        FileNotFoundError: If there is no such file.
        ExportedFileError: If it is damaged.
        EngineError: If its format's library is not installed.
    """
    path = Path(path)
    kind = _format_of(path)
    if not path.is_file():
        raise FileNotFoundError(f"no exported network at {path}; check the path")
    task = _task_of(_READERS[kind](path) or "")
    return task if task in COMMANDS else "classification"


def _task_of(text: str) -> str:
    """What a network was trained for, by its metadata; those that do not tell are classifiers."""
    try:
        return str(json.loads(text)["task"])
    except (ValueError, KeyError, TypeError, RecursionError):  # damaged: who reads all of it says so
        return "classification"


def open_exported(path: str | os.PathLike[str], *, device: str = "cpu", threads: int | None = None) -> Engine:
    """An exported file as an engine, which takes normalised images whether or not the file normalises itself.

    Args:
        path: A file of ``fastervit export``.
        device: Where it runs, if its format can run there.
        threads: Of the CPU; by default as many as torch uses. A torch program takes torch's own.

    Raises:
        FileNotFoundError: If there is no such file.
        ExportedFileError: If it was not exported by ``fastervit export``, or is damaged.
        EngineError: If its format's library is not installed, or does not run on the device.
    """
    return _open(Path(path), read_about(path), device, threads)


def load_exported(path: str | os.PathLike[str], *, device: str = "cpu", threads: int | None = None) -> Exported:
    """An exported file with its classes and how its images are prepared; see ``open_exported``."""
    about = read_about(path)
    return Exported(_open(Path(path), about, device, threads), about.classes, about.preparation)


def _open(path: Path, about: About, device: str, threads: int | None) -> Engine:
    engine = _OPENERS[about.format](path, about, device, threads)
    if about.preprocessing:
        return PixelEngine(engine, about.preparation["mean"], about.preparation["std"])
    return engine


def _format_of(path: Path) -> Format:
    for kind, suffix in SUFFIXES.items():
        if path.suffix.lower() == suffix:
            return kind
    raise ExportedFileError(
        f"{path} is no exported network by its name: it ends in none of {', '.join(SUFFIXES.values())}"
    )


# --- Reading what files say ------------------------------------------------------------------------------------------


def _read_onnx(path: Path) -> str | None:
    require("onnxruntime", "export", ["onnx"])
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # of protobuf's, whose kinds have no types
        raise ExportedFileError(f"{path} is a damaged ONNX file, or none at all ({error}); export it again") from error
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)


def _read_openvino(path: Path) -> str | None:
    model = _openvino_model(path)
    return str(model.get_rt_info([KEY]).astype(str)) if model.has_rt_info([KEY]) else None


def _openvino_model(path: Path) -> Any:
    require("openvino", "openvino", ["openvino"])
    try:
        return openvino_core().read_model(path)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ExportedFileError(
            f"{path} is a damaged OpenVINO model, or its {path.stem}.bin is not beside it ({reason[:200]})"
        ) from error


def _read_torch(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if Path(name).name == KEY:
                    with archive.open(name) as text:
                        return text.read(_MOST_TEXT).decode()
    except OSError:
        raise
    except Exception as error:  # what a reader raises on arbitrary bytes has no common class
        raise ExportedFileError(f"{path} is a damaged torch program, or none at all; export it again") from error
    return None


def _read_tensorrt(path: Path) -> str | None:
    beside = beside_plan(path)
    return beside.read_text("utf-8") if beside.is_file() else None


def beside_plan(path: Path) -> Path:
    """The file that tells what a TensorRT plan is."""
    return path.with_name(f"{path.name}.json")


_READERS: dict[Format, Callable[[Path], str | None]] = {
    "onnx": _read_onnx,
    "openvino": _read_openvino,
    "torch": _read_torch,
    "tensorrt": _read_tensorrt,
}


# --- Running files ---------------------------------------------------------------------------------------------------


def _open_onnx(path: Path, about: About, device: str, threads: int | None) -> Engine:
    require("onnxruntime", "export", ["onnxruntime"])
    from openfastervit.inference.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, about.precision, device=device, threads=threads)


def _open_openvino(path: Path, about: About, device: str, threads: int | None) -> Engine:
    import openvino
    import openvino.properties as properties
    import openvino.properties.hint as hint

    from openfastervit.inference.engines.openvino import arithmetic

    if torch.device(device).type != "cpu":
        raise EngineError(f"OpenVINO runs on the CPU here, not on {device!r}; choose device='cpu'")
    # A file of fp16 holds its weights so; CPUs without such arithmetic compute in float32.
    kind = "f32" if about.precision == "fp16" else arithmetic(about.precision)
    threads = threads or torch.get_num_threads()
    settings = {
        properties.inference_num_threads(): threads,
        hint.enable_cpu_pinning(): may_pin(threads),
        hint.inference_precision(): getattr(openvino.Type, kind),
        hint.performance_mode(): hint.PerformanceMode.LATENCY,
    }
    compiled = openvino_core().compile_model(_openvino_model(path), "CPU", settings)

    def call(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled(images.contiguous().numpy(), share_inputs=True)[0].copy())

    return _FileEngine("openvino", call, about, "cpu")


def _open_torch(path: Path, about: About, device: str, threads: int | None) -> Engine:
    from torch.export.passes import move_to_device_pass

    try:
        program = torch.export.load(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of torch's reader: it is a program, and may raise anything
        raise ExportedFileError(f"{path} is a damaged torch program ({error}); export it again") from error
    where = torch.device(device)
    if where.type != "cpu":
        program = move_to_device_pass(program, where)
    module = program.module()

    @torch.no_grad()
    def call(images: Tensor) -> Tensor:
        try:
            return cast(Tensor, module(images))
        except (AssertionError, RuntimeError) as error:  # what its guards raise
            if "Guard failed" not in str(error):
                raise
            size = f"{images.shape[2]} x {images.shape[3]}"
            raise ValueError(f"{path} takes no images of {size}: {str(error).splitlines()[0]}") from error

    return _FileEngine("torch-program", call, about, device)


def _open_tensorrt(path: Path, about: About, device: str, threads: int | None) -> Engine:
    from openfastervit.inference.engines.tensorrt import TensorRTEngine

    return TensorRTEngine(path.read_bytes(), about.precision, device=device)


_OPENERS: dict[Format, Callable[[Path, About, str, int | None], Engine]] = {
    "onnx": _open_onnx,
    "openvino": _open_openvino,
    "torch": _open_torch,
    "tensorrt": _open_tensorrt,
}


class _FileEngine:
    """A loaded file as an engine. See ``Engine``."""

    def __init__(self, name: str, call: Callable[[Tensor], Tensor], about: About, device: str) -> None:
        self.name = name
        self.precision: Precision = about.precision
        self.device = torch.device(device)
        self._call: Callable[[Tensor], Tensor] | None = call
        self._about = about

    def __call__(self, images: Tensor) -> Tensor:
        about = self._about
        tensor = isinstance(images, Tensor)
        if about.preprocessing and not (tensor and images.dtype == torch.uint8):
            found = images.dtype if tensor else type(images).__name__
            raise ValueError(f"{self.name}: this model normalises images itself: give uint8 pixels, not {found}")
        shape = images.new_empty(images.shape, dtype=torch.float32, device="meta") if about.preprocessing else images
        size = about.size or (tuple(images.shape[2:]) if tensor and images.dim() == 4 else (32, 32))
        check_batch(shape, about.preparation["input_size"][0], cast("tuple[int, int]", size), self.name)
        if self._call is None:
            raise EngineError(f"the engine {self.name!r} is closed")
        kind = torch.uint8 if about.preprocessing else torch.float32
        return self._call(images.detach().to(self.device, kind)).float()

    def close(self) -> None:
        self._call = None
