"""Exported files run where this package is not: in a process that cannot import it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_START = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("openfastervit", "openfastervit_cli", "timm"):
            raise ImportError(name)

sys.meta_path.insert(0, Forbidden())
import json
import numpy as np
path, folder = sys.argv[1:]
inputs = [np.load(f"{folder}/{i}.npy") for i in range(int(open(f"{folder}/count").read()))]
"""
_RUN = {
    ".onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
(images,), (logits,) = session.get_inputs(), session.get_outputs()
name, out, told = images.name, logits.name, session.get_modelmeta().custom_metadata_map["openfastervit"]
run = lambda x: session.run([out], {name: x})[0]
""",
    ".xml": """
import openvino
core = openvino.Core()
model = core.read_model(path)
told = model.get_rt_info(["openfastervit"]).astype(str)
name, out = model.inputs[0].get_any_name(), model.outputs[0].get_any_name()
compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
run = lambda x: compiled({name: x})[out]
""",
    ".pt2": """
import torch
torch.set_num_threads(1)
extra = {"openfastervit": ""}
module = torch.export.load(path, extra_files=extra).module()
name, out, told = "", "", extra["openfastervit"]
with torch.no_grad():
    run = lambda x: module(torch.from_numpy(x)).detach().numpy()
""",
}
_END = """
for i, x in enumerate(inputs):
    np.save(f"{folder}/out{i}.npy", run(x))
assert not any(module.partition(".")[0] == "openfastervit" for module in sys.modules)
print(json.dumps([name, out, told]))
"""


class Found(NamedTuple):
    logits: list[Tensor]
    names: tuple[str, str]
    """Of the input and of the output."""
    told: dict[str, object]


def run_elsewhere(file: Path, inputs: Sequence[Tensor], folder: Path) -> Found:
    """The logits that the file's own library gives, and what it finds written in the file."""
    folder.mkdir()
    (folder / "count").write_text(str(len(inputs)))
    for i, x in enumerate(inputs):
        np.save(folder / f"{i}.npy", x.numpy())
    script = _START + _RUN[file.suffix] + _END
    command = [sys.executable, "-I", "-W", "ignore", "-c", script, str(file), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    name, out, told = json.loads(done.stdout.splitlines()[-1])
    return Found(
        [torch.from_numpy(np.load(folder / f"out{i}.npy")) for i in range(len(inputs))], (name, out), json.loads(told)
    )
