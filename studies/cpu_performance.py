"""Where the time of FasterViT-0 goes on a CPU: the processor's ceilings, and what each step of making it fast brings.

::

    python -m studies.cpu_performance --data imagenette-val-224 --out cpu_performance.csv

First the ceilings: multiply-adds a second of the convolution and the matrix product that the network is made of, in
each precision, by the fastest kernel at hand, and bytes a second copied. Then the steps, each a way to run the same
network, in turns: what else the machine does meets all alike. The baseline is timm's convnext_tiny in eager float32.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads of a step that has ended must not spin in the next one

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

import openfastervit
from openfastervit import environment
from openfastervit.benchmarking.complexity import multiply_adds
from openfastervit.data.images import find_images, open_image
from openfastervit.inference.engines import Engine, Settings, create_engine
from openfastervit.inference.engines.engine import deployable
from openfastervit.inference.engines.openvino import OpenVINOEngine
from openfastervit.inference.engines.torch import TorchEngine
from openfastervit.inference.graphs import to_openvino
from openfastervit.inference.quantise import quantise_openvino

BATCH = 16
SIZE = (224, 224)
MODEL, BASELINE = "fastervit_0", "convnext_tiny"
Step = tuple[str, str, Callable[[Tensor], Tensor]]
"""Name, precision, what to call with images."""


def main(arguments: list[str] | None = None) -> int:
    """Measure ceilings and steps, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m studies.cpu_performance", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="photographs, which int8 takes its ranges from")
    parser.add_argument("--out", type=Path, required=True, help="the CSV")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each step")
    parser.add_argument("--model", default=MODEL, help="in place of fastervit_0")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    network = openfastervit.create_model(options.model).eval()
    operations = 2 * multiply_adds(deployable(network, SIZE), *SIZE)
    about = {
        **environment.hardware(),
        **environment.versions(("torch", "timm", "openvino", "nncf")),
        "threads": torch.get_num_threads(),
        "command": "python -m studies.cpu_performance --data imagenette-val-224 --out cpu_performance.csv"
        + (f" --model {options.model}" if options.model != MODEL else ""),
    }
    rows: list[dict[str, Any]] = []
    ceilings = {}
    for precision in ("fp32", "bf16", "int8"):
        rate = ceilings[precision] = products(precision)
        rows.append({"what": "ceiling: products", "precision": precision, "gflop_per_second": f"{rate / 1e9:.0f}"})
    rows.append({"what": "ceiling: copying", "gbyte_per_second": f"{copying() / 1e9:.1f}"})
    for row in rows:
        _tell(row)
    calibration = photographs(options.data, 64)
    for batch in (BATCH, 1):
        made = list(steps(network, calibration, batch))
        for row in in_turns(made, calibration[:batch], options.repeats if batch > 1 else 4 * options.repeats):
            if "convnext" not in row["what"]:
                rate = row.pop("rate") * operations
                row["gflop_per_second"] = f"{rate / 1e9:.0f}"
                row["share_of_ceiling"] = f"{rate / ceilings[row['precision']]:.3f}"
            row.pop("rate", None)
            rows.append(row)
            _tell(row)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
    return 0


def _tell(row: dict[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in row.items()), file=sys.stderr, flush=True)


# --- Ceilings -------------------------------------------------------------------------------------------------------


def products(precision: str) -> float:
    """Operations a second (two a multiply-add) of the network's own shapes, by the fastest kernel found."""
    by_torch = [] if precision == "int8" else _torch_products(precision)
    return max([*by_torch, *_openvino_products(precision)])


def _torch_products(precision: str) -> list[float]:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    x = torch.randn(BATCH, 64, 56, 56, dtype=dtype).contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(64, 64, 3, padding=1).to(dtype).to(memory_format=torch.channels_last)
    tokens, linear = torch.randn(BATCH * 212, 1024, dtype=dtype), nn.Linear(1024, 256).to(dtype)
    square = torch.randn(2048, 2048, dtype=dtype)
    with torch.inference_mode():
        return [
            2 * BATCH * 56 * 56 * 64 * 576 / _best(lambda: conv(x)),
            2 * BATCH * 212 * 1024 * 256 / _best(lambda: linear(tokens)),
            2 * 2048**3 / _best(lambda: square @ square),
        ]


def _openvino_products(precision: str) -> list[float]:
    """The same convolution, eight in a row, so that what is around them counts little."""
    depth = 8
    chain = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(depth)))
    x = torch.randn(BATCH, 64, 56, 56)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = chain

        def forward(self, images: Tensor) -> Tensor:
            return self.chain(images).mean((2, 3))

    model = to_openvino(Classifier().eval(), (56, 56))
    if precision == "int8":
        model = quantise_openvino(model, x, max_loss=1.0)
    settings = Settings(size=(56, 56), precision=precision, batch_size=BATCH)  # type: ignore[arg-type]
    engine = OpenVINOEngine(model, settings)
    return [depth * 2 * BATCH * 56 * 56 * 64 * 576 / _best(lambda: engine(x))]


def copying() -> float:
    """Bytes a second, read and written, of a copy too large for any cache."""
    source = torch.zeros(1 << 29, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * len(source) / _best(lambda: target.copy_(source))


def _best(call: Callable[[], Any], repeats: int = 15) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


# --- Steps ----------------------------------------------------------------------------------------------------------


def steps(network: nn.Module, calibration: Tensor, batch: int) -> list[Step]:
    """Ways to run the network, from the plain one on, and the baseline."""
    fp32, bf16 = (Settings(size=SIZE, precision=p, batch_size=batch) for p in ("fp32", "bf16"))  # type: ignore[arg-type]
    int8 = Settings(size=SIZE, precision="int8", batch_size=batch, calibration=calibration)
    made: list[tuple[str, Engine]] = [
        (f"{BASELINE}, eager", create_engine(timm.create_model(BASELINE).eval(), "torch-eager", fp32)),
        ("eager", create_engine(network, "torch-eager", fp32)),
        ("folded", TorchEngine("folded", deployable(network, SIZE), fp32, 3)),
        ("folded, products by oneDNN (torch-folded)", create_engine(network, "torch-folded", fp32)),
    ]
    model = to_openvino(deployable(network, SIZE), SIZE)
    quantised = quantise_openvino(model, calibration)
    made += [
        (
            "OpenVINO, one stream, its choice of kernels",
            OpenVINOEngine(model, fp32, streams=1, convolution_kernels=False),
        ),
        ("OpenVINO, one stream, kernels of convolutions", OpenVINOEngine(model, fp32, streams=1)),
    ]
    if batch > 1:
        made.append(("OpenVINO, a stream a core, its choice", OpenVINOEngine(model, fp32, convolution_kernels=False)))
        made.append(("OpenVINO, a stream a core, kernels of convolutions (openvino)", OpenVINOEngine(model, fp32)))
        made.append(("OpenVINO, one stream", OpenVINOEngine(model, bf16, streams=1)))
        made.append(("OpenVINO, one stream", OpenVINOEngine(quantised, int8, streams=1)))
    made.append(("folded, products by oneDNN (torch-folded)", create_engine(network, "torch-folded", bf16)))
    made.append(("OpenVINO (openvino)", OpenVINOEngine(model, bf16)))
    made.append(("OpenVINO (openvino)", OpenVINOEngine(quantised, int8)))
    return [(name, engine.precision, engine) for name, engine in made]


def in_turns(made: list[Step], images: Tensor, repeats: int) -> list[dict[str, Any]]:
    """Images a second of each, its ratio to the first turn by turn, and the quartiles of that."""
    seconds: dict[int, list[float]] = {i: [] for i in range(len(made))}
    for _ in range(repeats):
        for i, (_, _, call) in enumerate(made):
            call(images)  # caches, threads and clocks are those of this step
            started = time.perf_counter()
            call(images)
            seconds[i].append(time.perf_counter() - started)
    rows = []
    for i, (name, precision, _) in enumerate(made):
        ratios = np.array(seconds[0]) / np.array(seconds[i])
        low, high = np.quantile(ratios, [0.25, 0.75])
        median = statistics.median(seconds[i])
        rows.append(
            {
                "what": name,
                "precision": precision,
                "batch": len(images),
                "images_per_second": f"{len(images) / median:.2f}",
                "latency_ms": f"{1000 * median:.1f}",
                "ratio": f"{float(np.median(ratios)):.2f}",
                "ratio_q1": f"{low:.2f}",
                "ratio_q3": f"{high:.2f}",
                "rate": len(images) / median,
            }
        )
    return rows


def photographs(folder: Path, count: int) -> Tensor:
    """Normalised images ``(count, 3, H, W)``, evenly over a folder."""
    found = find_images(folder)
    transform = create_transform((3, *SIZE), is_training=False)
    return torch.stack([transform(open_image(found[i * len(found) // count])) for i in range(count)])


if __name__ == "__main__":
    sys.exit(main())
