"""What it ran on, and the card's clocks as they are found. All of it is read; nothing is ever set."""

import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

import openfastervit
from openfastervit import environment

ASKED: Mapping[str, str] = {
    "driver": "driver_version",
    "sm_clock_mhz": "clocks.current.sm",
    "memory_clock_mhz": "clocks.current.memory",
    "sm_clock_most_mhz": "clocks.max.sm",
    "memory_clock_most_mhz": "clocks.max.memory",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
    "performance_state": "pstate",
    "used_memory_mb": "memory.used",
}
"""Columns, and what they are called in ``nvidia-smi --query-gpu``."""


def facts(device: str) -> dict[str, Any]:
    """What stands in each row: hardware and versions."""
    return {
        **environment.hardware(gpus=device != "cpu"),
        "cuda": torch.version.cuda or "none",
        **environment.versions(("torch", "triton", "timm")),
        "openfastervit": openfastervit.__version__,
    }


def state(moment: str, device: str) -> dict[str, Any]:
    """The card at a moment of the session. What the driver does not tell stays empty."""
    found: dict[str, Any] = {"moment": moment, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    found |= dict.fromkeys(ASKED, "")
    if device.startswith("cuda"):
        found |= _asked(device)
    return found


def _asked(device: str) -> dict[str, str]:
    index = torch.device(device).index or 0
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"performance_state": "unknown: there is no nvidia-smi"}
    # The card by its own name: CUDA_VISIBLE_DEVICES may have counted them anew.
    card = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    command = [program, f"--id={card}", f"--query-gpu={','.join(ASKED.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        return {"performance_state": f"unknown: {' '.join(str(error).split())}"}
    return dict(zip(ASKED, (value.strip() for value in done.stdout.strip().split(",")), strict=False))
