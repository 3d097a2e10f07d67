"""The folder that a benchmark leaves: ``results.csv``, ``settings.json``, ``page.html``. Each is whole at any time."""

import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic

from openfastervit import __version__, environment
from openfastervit.atomic import write_atomically
from openfastervit.benchmarking.cases import to_csv
from openfastervit.benchmarking.published import SOURCES
from openfastervit.benchmarking.status import INTERRUPTED, RUNNING
from openfastervit.benchmarking.subject import R, Subject

PACKAGES = (
    *("torch", "torchvision", "timm", "transformers", "numpy"),
    *("onnx", "onnxruntime", "openvino", "nncf", "tensorrt"),
)
"""Whose versions say what was measured."""
VARIABLES = ("OMP_", "MKL_", "KMP_", "GOMP_", "ONEDNN_", "DNNL_", "CUDA_", "PYTORCH_", "TORCH_", "OV_")
"""Beginnings of the names of environment variables that change speed."""


class Folder(Generic[R]):
    """Rows as they come, and what they were measured with.

    Args:
        path: The folder; it is made.
        cases: In the order that their rows are to have.
        settings: What the figures follow from.
        columns: Of ``results.csv``.
        judge: What is said of the rows once all are seen beside one another.

    Raises:
        ValueError: If the folder has results already, or is a file.
    """

    def __init__(
        self,
        path: Path,
        cases: Sequence[Subject[R]],
        settings: Mapping[str, Any],
        *,
        columns: Sequence[str],
        judge: Callable[[list[R]], list[R]] = list,
    ) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"--out {path} is a file; name a folder")
        if (path / "results.csv").exists():
            raise ValueError(f"--out {path} holds results already; name another folder, or remove them")
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._order = {case.key: number for number, case in enumerate(cases)}
        self._columns = columns
        self._judge = judge
        self._rows: dict[Hashable, R] = {}
        self._settings: dict[str, Any] = {**settings, "started": _now(), "finished": None, "load_before": _load()}
        self._write()

    @property
    def rows(self) -> list[R]:
        """Rows so far, in the order they were asked for, each with its verdict."""
        return self._judge(sorted(self._rows.values(), key=lambda row: self._order[row.key]))

    @property
    def settings(self) -> dict[str, Any]:
        """What ``settings.json`` says."""
        return self._settings

    def add(self, rows: Sequence[R]) -> None:
        """Keep rows, in the place of earlier ones of the same cases."""
        self._rows |= {row.key: row for row in rows}
        write_atomically(self.path / "results.csv", to_csv(self.rows, self._columns).encode())

    def finish(self, *, interrupted: bool, page: Callable[[list[R], Mapping[str, Any]], str] | None = None) -> None:
        """Write the rest. Rows that are still running are so no more.

        Args:
            interrupted: Whether the run was.
            page: What makes ``page.html`` of the rows and the settings.
        """
        for key, row in self._rows.items():
            if row.status.startswith(RUNNING):
                self._rows[key] = replace(row, status=row.status.replace(RUNNING, INTERRUPTED, 1))
        self.add([])
        self._settings |= {"finished": _now(), "interrupted": interrupted, "load_after": _load()}
        self._write()
        if page is not None:
            write_atomically(self.path / "page.html", page(self.rows, self._settings).encode())

    def _write(self) -> None:
        text = json.dumps(self._settings, indent=2, ensure_ascii=False)
        write_atomically(self.path / "settings.json", f"{text}\n".encode())


def describe(device: str) -> dict[str, Any]:
    """What a classifier's figures follow from, beside the options."""
    return {
        **describe_machine(device),
        "published_top1": SOURCES,
        "weights": "random: speed does not depend on them, and nothing was downloaded",
    }


def describe_machine(device: str) -> dict[str, Any]:
    """Hardware, versions and environment variables that figures follow from."""
    return {
        "hardware": environment.hardware(gpus=device != "cpu"),
        "versions": {"openfastervit": __version__, **environment.versions(PACKAGES)},
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _load() -> list[float] | None:
    """Processes that wanted a core, over 1, 5 and 15 minutes: what else the machine had to do."""
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None
