"""``fastervit app``."""

import sys
from pathlib import Path
from typing import Literal


def app(
    *,
    checkpoint: Path,
    compare: list[Path] | None = None,
    compare_engine: list[str] | None = None,
    engine: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    device: str = "auto",
    benchmark: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_pixels: int = 50_000_000,
    max_body_mb: int = 20,
) -> int:
    """Open a web page: drop an image, and see what the network makes of it.

    The page shows classes, boxes and masks, or the class of each pixel, by what the checkpoint was trained for; what
    the carrier tokens look at; the time it took; and another network or engine beside it. Ctrl-C or SIGTERM ends it.
    Whoever can reach the address can use the page: it has no passwords.

    Args:
        checkpoint: A checkpoint, a run's folder, or an exported network.
        compare: Others, to be shown beside it.
        compare_engine: Other engines that the checkpoint is to run on, to be shown beside it.
        engine: What runs classifiers: torch-folded, openvino, ...; auto measures which is fastest here, and remembers
            it.
        precision: Of the engine's products.
        device: cpu, cuda, cuda:1, mps; auto takes the best there is.
        benchmark: Results of `fastervit benchmark` for the second tab: results.csv, or its folder.
        host: Name or address to listen on; 0.0.0.0 lets other machines in.
        port: To listen on; 0 takes one that is free.
        max_pixels: Images that have more are refused.
        max_body_mb: The largest file that is taken, in 10^6 bytes.
    """
    for name, value in (("max-pixels", max_pixels), ("max-body-mb", max_body_mb)):
        if value < 1:
            raise ValueError(f"--{name} {value} must be at least 1")
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port} must be from 0 to 65535")
    from openfastervit.serving.page.server import require_gradio, serve_page

    require_gradio()
    from openfastervit.serving.page.benchmark import benchmark_page
    from openfastervit.serving.page.subjects import open_subjects

    def tell(line: str) -> None:
        print(f"fastervit: {line}", file=sys.stderr, flush=True)

    shown = None if benchmark is None else benchmark_page(benchmark)
    with open_subjects(
        checkpoint,
        compare=compare or [],
        compare_engine=compare_engine or [],
        engine=engine,
        precision=precision,
        device=device,
        tell=tell,
    ) as subjects:
        serve_page(
            subjects,
            host=host,
            port=port,
            max_pixels=max_pixels,
            max_body=1_000_000 * max_body_mb,
            benchmark=shown,
            tell=tell,
        )
    return 0
