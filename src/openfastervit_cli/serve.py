"""``fastervit serve``."""

import contextlib
import sys
from pathlib import Path
from typing import Literal


def serve(
    *,
    checkpoint: Path,
    engine: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    device: str = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    standby: int | None = None,
    max_batch: int | None = None,
    batch_wait_ms: float = 5.0,
    api_keys: Path | None = None,
    max_body_mb: float = 20.0,
    max_pixels: int = 50_000_000,
    max_queue: int | None = None,
    timeout_s: float = 30.0,
    receive_s: float = 20.0,
    topk: int = 5,
    drain_s: float = 30.0,
) -> int:
    """Answer over HTTP what a network sees in images.

    POST /predict takes a JPEG, PNG or WebP as its body, in a form's field "image", or as base64 in JSON, and answers
    with classes, with boxes and masks, or with the class of each pixel, by what the network was trained for. /docs and
    /openapi.json describe it, /health says whether it is ready, /metrics is for Prometheus. Only this machine reaches
    it unless --host says otherwise. SIGTERM and Ctrl-C end it once what is in flight is answered; a second one ends it
    at once.

    Args:
        checkpoint: Weights of any task, a run's folder, or an exported network (.onnx, .xml, .pt2).
        engine: What runs a classifier: torch-folded, openvino, ...; auto measures which is fastest here, and remembers.
        precision: Of a classifier's engine.
        device: cpu, cuda, cuda:1, mps; auto takes the best there is; cuda deals workers out to all GPUs.
        host: Address to listen on; 0.0.0.0 is all of IPv4's.
        port: To listen on; 0 takes one that is free, and says which.
        workers: Processes that have the network, and share the work.
        standby: Further ones that only wait to take the place of one that dies, for starting another takes a while; by
            default 1 where there is one worker, else 0.
        max_batch: Images that are predicted together; by default 8 for classifiers, and 1 for the others, which look at
            one image after another.
        batch_wait_ms: How long a batch waits for more images after its first.
        api_keys: A file with the keys that are let in, one a line; without it everyone is.
        max_body_mb: Largest body of a request, in MiB.
        max_pixels: Largest image.
        max_queue: Images that may wait for their batch; more are refused with 503. By default one batch a worker.
        timeout_s: From a request's last byte to its answer, in seconds; then it is refused with 504.
        receive_s: From a request's head to its last byte; then it is refused with 408.
        topk: Classes of an answer, where a request does not say how many.
        drain_s: How long, once told to end, it waits for what is in flight.
    """
    from openfastervit.inference.engines.engine import installed
    from openfastervit.inference.images_in_memory import find_task

    missing = [name for name in ("litserve", "prometheus_client", "python_multipart") if not installed(name)]
    if missing:
        raise ValueError(f"serving needs {' and '.join(missing)}; install with: pip install 'openfastervit[serve]'")
    from openfastervit.serving.http.keys import Keys
    from openfastervit.serving.http.settings import Settings
    from openfastervit.serving.http.start import serve as start

    keys = None if api_keys is None else Keys.read(api_keys)
    task = find_task(checkpoint)
    batch = max_batch if max_batch is not None else 8 if task == "classification" else 1
    settings = Settings(
        checkpoint=checkpoint,
        task=task,
        engine=engine,
        precision=precision,
        device=device,
        host=host,
        port=port,
        workers=workers,
        standby=standby if standby is not None else int(workers == 1),
        max_batch=batch,
        batch_wait_ms=batch_wait_ms,
        max_body_mb=max_body_mb,
        max_pixels=max_pixels,
        max_queue=max_queue if max_queue is not None else max(1, batch * workers),
        timeout_s=timeout_s,
        receive_s=receive_s,
        topk=topk,
        drain_s=drain_s,
    )

    def tell(line: str) -> None:
        with contextlib.suppress(OSError):  # a full disk under the log is no reason to end, nor not to
            print(f"fastervit: {line}", file=sys.stderr, flush=True)

    if keys is None and host not in ("127.0.0.1", "::1", "localhost"):
        tell(f"warning: everyone who reaches {host} may use this server; --api-keys FILE lets in who has a key")
    start(settings, keys, tell)
    return 0
