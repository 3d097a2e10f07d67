"""What a server tells Prometheus of itself."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

PATHS = frozenset(("/predict", "/health", "/metrics", "/docs", "/openapi.json"))
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # a line for every other one
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "fastervit_requests", "Requests that were answered.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "fastervit_request_seconds",
            "From a request's first line to its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "fastervit_batch_size", "Images that were predicted together.", buckets=_BATCHES, registry=registry
        )
        self.restarts = Counter("fastervit_worker_restarts", "Workers that ended by themselves.", registry=registry)
        self.in_flight = Gauge("fastervit_in_flight", "Requests that are not answered yet.", registry=registry)
        self._queue = Gauge("fastervit_queue_length", "Images that wait for their batch to begin.", registry=registry)
        self._ready = Gauge("fastervit_workers_ready", "Workers that can predict.", registry=registry)

    def watch(self, queue: Callable[[], int], ready: Callable[[], int]) -> None:
        """Where to look when the figures are asked for."""
        self._queue.set_function(queue)
        self._ready.set_function(ready)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request. Paths that are none of ours are counted as one: their number has no bound."""
        path = path if path in PATHS else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
