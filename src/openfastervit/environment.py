"""What a run ran on: enough to read its durations by, and to run it again."""

import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Python and those of ``packages`` that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional one
    return found


def hardware(*, gpus: bool = True) -> dict[str, str | int]:
    """The processor, the cores this process may use, the operating system. No name of the machine or its user.

    Args:
        gpus: Name the GPUs too, such as ``"8 x NVIDIA A100-SXM4-80GB"``, or ``"none"``. This starts their driver.
    """
    found: dict[str, str | int] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
    }
    if gpus:
        names = Counter(_gpu_names())
        found["gpus"] = ", ".join(f"{count} x {name}" for name, count in names.items()) or "none"
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_names() -> list[str]:
    """One name a GPU that this process may use, whoever made it."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return []
    module = torch.get_device_module(kind)
    # Apple's GPU has no name in torch.
    named = getattr(module, "get_device_name", lambda index: kind.type)
    return [str(named(index)) for index in range(torch.accelerator.device_count())]
