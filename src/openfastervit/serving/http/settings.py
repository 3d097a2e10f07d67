"""What a server is told when it starts, and what it allows."""

import math
from dataclasses import dataclass
from pathlib import Path

from openfastervit.data.images import MAX_PIXELS
from openfastervit.inference.engines import ENGINES, Precision
from openfastervit.inference.exported import is_exported
from openfastervit.inference.images_in_memory import Task

MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """Of one server.

    Raises:
        ValueError: If a value is out of range.
    """

    checkpoint: Path
    task: Task
    engine: str = "auto"
    precision: Precision = "fp32"
    device: str = "auto"
    """"cuda" deals the workers out to all GPUs."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes one that is free."""
    workers: int = 1
    standby: int = 1
    """Workers more that have the model, and take the place of one that dies."""
    max_batch: int = 8
    batch_wait_ms: float = 5.0
    """How long a batch waits for more images after its first."""
    max_body_mb: float = 20.0
    """MiB of a request's body."""
    max_pixels: int = 50_000_000
    max_queue: int = 8
    """Images that may wait for their batch to begin; those that come then are refused."""
    timeout_s: float = 30.0
    """From a request's last byte to its answer."""
    receive_s: float = 20.0
    """From a request's first line to its last byte."""
    drain_s: float = 30.0
    topk: int = 5

    def __post_init__(self) -> None:
        if self.engine not in ("auto", *ENGINES) and not is_exported(self.checkpoint):
            raise ValueError(f"--engine {self.engine} is unknown; choose auto, {', '.join(ENGINES)}")
        least: dict[str, float] = {"workers": 1, "max_batch": 1, "max_queue": 1, "topk": 1, "max_pixels": 1}
        least |= {"port": 0, "standby": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least {value:g}")
        for name in ("max_body_mb", "timeout_s", "receive_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name):g} must be above 0")
        for name in ("batch_wait_ms", "drain_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name):g} must be at least 0")
        if self.port > 65535:
            raise ValueError(f"--port {self.port} must be at most 65535")
        if self.max_pixels > MAX_PIXELS:
            raise ValueError(f"--max-pixels {self.max_pixels} must be at most {MAX_PIXELS}")
        if self.batch_wait_ms >= 1000 * self.timeout_s:
            raise ValueError(f"--batch-wait-ms {self.batch_wait_ms:g} must be less than --timeout-s {self.timeout_s:g}")

    @property
    def max_body(self) -> int:
        """Bytes of a request's body."""
        return int(self.max_body_mb * MIB)

    @property
    def max_uploads(self) -> int:
        """Bodies that may be on their way in at once."""
        return max(64, 4 * self.max_queue)
