"""Files of exported detectors and segmenters: what is written in them beside the network, and running it."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from openfastervit.inference.checkpoint import COMMANDS
from openfastervit.inference.engines.engine import Precision, require
from openfastervit.inference.exported import KEY, PRECISIONS, SUFFIXES, ExportedFileError
from openfastervit.inference.openvino_core import may_pin, openvino_core

DenseFormat = Literal["onnx", "openvino"]
DENSE_FORMATS: tuple[DenseFormat, ...] = get_args(DenseFormat)
Task = Literal["detection", "segmentation"]
Resize = Literal["fit", "stretch"]
"""How images come to the file's size: scaled to fit into it, the rest left empty, or stretched to it."""
Size = tuple[int, int]


@dataclass(frozen=True)
class DenseAbout:
    """What an exported detector or segmenter says of itself."""

    task: Task
    format: DenseFormat
    precision: Precision
    model: str
    """The backbone's name."""
    head: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...] | None
    """COCO's number of each class, of a detector."""
    size: Size
    """Height and width of the images."""
    resize: Resize
    mean: tuple[float, ...]
    std: tuple[float, ...]
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text that is kept in the file."""
        told: dict[str, Any] = {
            "task": self.task,
            "model": self.model,
            "head": self.head,
            "classes": list(self.classes),
            "input": {
                "size": [len(self.mean), *self.size],
                "mean": list(self.mean),
                "std": list(self.std),
                "resize": self.resize,
            },
            "export": {
                "format": self.format,
                "precision": self.precision,
                "size": list(self.size),
                "preprocessing": False,
                "versions": dict(self.versions),
            },
        }
        if self.category_ids is not None:
            told["category_ids"] = list(self.category_ids)
        return json.dumps(told)

    @classmethod
    def from_json(cls, text: str) -> "DenseAbout":
        """Read what ``to_json`` wrote.

        Raises:
            ExportedFileError: If it has another form.
        """
        try:
            about = cls._parsed(json.loads(text))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ExportedFileError(
                f"its metadata is damaged ({type(error).__name__}: {error}); export it again"
            ) from error
        known = about.format in DENSE_FORMATS and about.precision in PRECISIONS[about.format]
        known = known and about.resize in get_args(Resize)
        colours = len(about.mean) == len(about.std) == 3 and min(about.std) > 0
        numbered = (about.category_ids is not None) == (about.task == "detection")
        if numbered and about.category_ids is not None:
            numbered = len(about.category_ids) == len(about.classes)
        if not (known and colours and numbered) or min(about.size) < 1 or not about.classes:
            raise ExportedFileError("its metadata is damaged: its values are impossible; export it again")
        return about

    @classmethod
    def _parsed(cls, told: Any) -> "DenseAbout":
        export, prepared = told["export"], told["input"]
        height, width = (int(side) for side in export["size"])
        numbers = told.get("category_ids")
        return cls(
            task=told["task"],
            format=export["format"],
            precision=export["precision"],
            model=str(told["model"]),
            head=str(told["head"]),
            classes=tuple(str(name) for name in told["classes"]),
            category_ids=None if numbers is None else tuple(int(number) for number in numbers),
            size=(height, width),
            resize=prepared["resize"],
            mean=tuple(float(value) for value in prepared["mean"]),
            std=tuple(float(value) for value in prepared["std"]),
            versions=export.get("versions") or {},
        )


# --- Files ------------------------------------------------------------------------------------------------------------


class DenseFile:
    """An exported detector or segmenter, loaded.

    Args:
        path: A file of ``fastervit export``.
        task: What it must be for.
        threads: Of the CPU; by default as many as torch uses.

    Raises:
        FileNotFoundError: If there is no such file.
        ExportedFileError: If it is for another task, was not exported by ``fastervit export``, or is damaged.
        EngineError: If its format's library is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], task: Task, *, threads: int | None = None) -> None:
        path = Path(path)
        kind = next((kind for kind in DENSE_FORMATS if path.suffix.lower() == SUFFIXES[kind]), None)
        if kind is None:
            raise ExportedFileError(
                f"{path} is no exported network for {task} by its name: these are .onnx and .xml files"
            )
        if not path.is_file():
            raise FileNotFoundError(f"no exported network at {path}; check the path")
        told, run = _OPENERS[kind](path, threads or torch.get_num_threads())
        if told is None:
            raise ExportedFileError(
                f"{path} was not made by `fastervit export`: it does not tell its classes and images"
            )
        try:
            self.about = _about(told, task)
        except ExportedFileError as error:
            raise ExportedFileError(f"{path}: {error}") from error
        self._run = run

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Outputs by their names, of inputs by theirs."""
        found = self._run({name: value.contiguous().numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in found.items()}


def _about(text: str, task: Task) -> DenseAbout:
    try:
        found = json.loads(text).get("task", "classification")
    except (ValueError, AttributeError) as error:
        raise ExportedFileError(f"its metadata is damaged ({error}); export it again") from error
    if found != task:
        command = " ".join(["fastervit", *([COMMANDS[found]] if found in COMMANDS else []), "predict"])
        raise ExportedFileError(f"it was exported for {found}, not {task}; use `{command}` with it")
    return DenseAbout.from_json(text)


_Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def _open_onnx(path: Path, threads: int) -> tuple[str | None, _Run]:
    require("onnxruntime", "export", ["onnxruntime"])
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors: the rest is about its own choices
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        reason = " ".join(str(error).split())
        raise ExportedFileError(f"{path} is a damaged ONNX file, or none at all ({reason[:200]})") from error
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return session.get_modelmeta().custom_metadata_map.get(KEY), run


def _open_openvino(path: Path, threads: int) -> tuple[str | None, _Run]:
    require("openvino", "openvino", ["openvino"])
    import openvino
    import openvino.properties as properties
    import openvino.properties.hint as hint

    try:
        model = openvino_core().read_model(path)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ExportedFileError(
            f"{path} is a damaged OpenVINO model, or its {path.stem}.bin is not beside it ({reason[:200]})"
        ) from error
    settings = {
        properties.inference_num_threads(): threads,
        hint.enable_cpu_pinning(): may_pin(threads),
        hint.inference_precision(): openvino.Type.f32,  # it would take bfloat16 where the CPU has it
        hint.performance_mode(): hint.PerformanceMode.LATENCY,
    }
    compiled = openvino_core().compile_model(model, "CPU", settings)

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = compiled(inputs, share_inputs=True)
        names = [next(name for name in output.get_names() if name in OUTPUTS) for output in compiled.outputs]
        return {name: found[i].copy() for i, name in enumerate(names)}

    return str(model.get_rt_info([KEY]).astype(str)) if model.has_rt_info([KEY]) else None, run


OUTPUTS = frozenset(("boxes", "scores", "labels", "count", "masks", "logits"))
"""Names of the outputs. OpenVINO knows some of them by others too."""

_OPENERS: dict[DenseFormat, Callable[[Path, int], tuple[str | None, _Run]]] = {
    "onnx": _open_onnx,
    "openvino": _open_openvino,
}


__all__ = ["DENSE_FORMATS", "DenseAbout", "DenseFile", "DenseFormat", "Resize", "Size", "Task"]
