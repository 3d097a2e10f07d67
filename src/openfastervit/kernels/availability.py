"""Whether kernels can run on a device, and if not, why."""

import importlib.util
import os

import torch

LEAST_CAPABILITY = (8, 0)
"""Of the chip: Ampere, the first with bfloat16 products."""


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter: on any device, slowly, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def unavailable(device: torch.device | str) -> str | None:
    """Why kernels cannot run on a device, and what would help; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; torch for Linux with CUDA brings it, elsewhere: pip install triton"
    if interpreted():
        return None
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return (
            f"kernels run on GPUs of NVIDIA's, and {device.type!r} is none that torch sees here; TRITON_INTERPRET=1 "
            "runs them in Triton's interpreter, slowly, for tests"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return (
            f"kernels need a GPU of compute capability {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} or later, "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
        )
    return None
