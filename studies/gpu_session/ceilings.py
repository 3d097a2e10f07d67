"""What the chip can do: bytes a second copied, operations a second of products, large ones and the network's own."""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COPY, LARGE = "copy", "matrix product"


@dataclass(frozen=True)
class Ceiling:
    """One thing to measure."""

    what: str
    dtype: str
    sizes: tuple[int, ...]
    """Bytes of a copy; ``(M, K, N)`` of a product; ``(B, C, O, H, W)`` of a 3 x 3 convolution."""
    repeats: int


def ceilings(*, small: bool) -> list[Ceiling]:
    """All of them; the two that a floor follows from first.

    Args:
        small: Sizes for a CPU.
    """
    if small:
        return [
            Ceiling(COPY, "bf16", (1 << 20,), 3),
            Ceiling(LARGE, "bf16", (64, 64, 64), 3),
            Ceiling("convolution", "bf16", (1, 8, 8, 14, 14), 3),
        ]
    batch = 128
    tokens, last = batch * (4 * 49 + 16), batch * 49
    return [
        Ceiling(COPY, "bf16", (1 << 31,), 50),
        Ceiling(LARGE, "bf16", (8192, 8192, 8192), 50),
        Ceiling(LARGE, "fp16", (8192, 8192, 8192), 50),
        # fastervit_0 at 224 x 224: its convolutions, its stages of attention
        Ceiling("convolution", "bf16", (batch, 64, 64, 56, 56), 100),
        Ceiling("convolution", "bf16", (batch, 128, 128, 28, 28), 100),
        Ceiling("linear", "bf16", (tokens, 256, 768), 100),
        Ceiling("linear", "bf16", (tokens, 256, 1024), 100),
        Ceiling("linear", "bf16", (tokens, 1024, 256), 100),
        Ceiling("linear", "bf16", (last, 512, 2048), 100),
        Ceiling("linear", "bf16", (last, 2048, 512), 100),
    ]


def label(ceiling: Ceiling) -> dict[str, Any]:
    """What names a ceiling's row."""
    return {"what": ceiling.what, "dtype": ceiling.dtype, "sizes": " x ".join(map(str, ceiling.sizes))}


def make(ceiling: Ceiling, device: str) -> list[dict[str, Any]]:
    """The row of a ceiling: the median of many repeats, and its quartiles."""
    torch.manual_seed(0)
    with torch.inference_mode():
        call, work = _prepared(ceiling, torch.device(device))
        seconds = repeats(call, ceiling.repeats, torch.device(device))
    middle = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    rate = "gbyte_per_second" if ceiling.what == COPY else "tflop_per_second"
    unit = 1e9 if ceiling.what == COPY else 1e12
    return [
        {
            **label(ceiling),
            rate: f"{work / middle / unit:.5g}",
            "milliseconds": f"{1000 * middle:.5g}",
            "milliseconds_q1": f"{1000 * low:.5g}",
            "milliseconds_q3": f"{1000 * high:.5g}",
            "repeats": ceiling.repeats,
            "status": "ok",
        }
    ]


def _prepared(ceiling: Ceiling, device: torch.device) -> tuple[Callable[[], Tensor], int]:
    """What is called, and the bytes or operations of a call."""
    dtype, sizes = DTYPES[ceiling.dtype], ceiling.sizes
    if ceiling.what == COPY:
        source = torch.randint(256, (sizes[0],), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source), 2 * sizes[0]
    if ceiling.what == "convolution":
        batch, inside, outside, height, width = sizes
        x = _random((batch, inside, height, width), device, dtype).contiguous(memory_format=torch.channels_last)
        kernel = _random((outside, inside, 3, 3), device, dtype).contiguous(memory_format=torch.channels_last)
        torch.backends.cudnn.benchmark = True
        return lambda: F.conv2d(x, kernel, padding=1), 2 * batch * outside * height * width * 9 * inside
    m, k, n = sizes
    left, right = _random((m, k), device, dtype), _random((n, k), device, dtype)
    return lambda: F.linear(left, right), 2 * m * k * n


def _random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Random numbers: a chip is faster, and cooler, with zeros."""
    return torch.randn(shape, device=device).to(dtype)


def repeats(call: Callable[[], object], count: int, device: torch.device) -> list[float]:
    """Seconds of each of ``count`` calls, by the device's own clock."""
    for _ in range(3):
        call()
    if device.type != "cuda":
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        return seconds
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize(device)
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize(device)
    return [first.elapsed_time(second) / 1000 for first, second in itertools.pairwise(events)]
