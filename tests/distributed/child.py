"""What the tests' processes do: ``python -m tests.distributed.child JOBS.json``, alone or under torchrun.

A job is a run of training, started or resumed, or a function of this module; what each process came to, or the
message of its error, is left beside the file.
"""

import faulthandler
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from openfastervit.training.batch_norm import GlobalBatchNorm2d
from openfastervit.training.parallel import read_on_first
from openfastervit.training.recipe import make_recipe
from openfastervit.training.run import RECIPES, resume, start

PATIENCE = 480
"""Seconds after which a process that hangs tells where, and ends."""
RANK, COUNT = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def train(out: str, recipe: dict[str, Any], task: str = "classification") -> dict[str, Any]:
    return {"metrics": start(make_recipe(recipe, RECIPES[task]), out).metrics}


def go_on(out: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {"metrics": resume(out, **changes).metrics}


def cut(source: str, out: str, update: int) -> None:
    """A copy of a run's folder, with the checkpoint after one update alone."""
    if RANK == 0:
        shutil.copytree(source, out)
        for checkpoint in Path(out, "checkpoints").iterdir():
            if int(checkpoint.name.rpartition("-")[2]) != update:
                shutil.rmtree(checkpoint)
    if COUNT > 1:
        dist.barrier()


def batch_norm(dtype: str) -> dict[str, Any]:
    """How far batch norm over all processes is from torch's own of all images: outputs, gradients, statistics."""
    torch.manual_seed(0)
    one: Any = nn.BatchNorm2d(3, momentum=0.3).to(getattr(torch, dtype))
    nn.init.uniform_(one.weight)
    nn.init.uniform_(one.bias)
    several: Any = nn.BatchNorm2d(3, momentum=0.3).to(getattr(torch, dtype))
    several.load_state_dict(one.state_dict())
    several.__class__ = GlobalBatchNorm2d
    # A mean far from 0, where E[x^2] - E[x]^2 would have lost its digits.
    images = (torch.randn(4 * COUNT, 3, 5, 4) * torch.tensor([1, 2, 0.5]).view(3, 1, 1) + 300).to(getattr(torch, dtype))
    pull = torch.randn_like(images)
    apart: dict[str, float] = {}
    for _ in range(2):
        whole = images.clone().requires_grad_()
        mine = images[RANK::COUNT].clone().requires_grad_()
        theirs, ours = one(whole), several(mine)
        (theirs * pull).sum().backward()
        (ours * pull[RANK::COUNT]).sum().backward()
        for grad in (several.weight.grad, several.bias.grad):
            dist.all_reduce(grad)
        pairs = {
            "output": (ours, theirs[RANK::COUNT]),
            "input gradient": (mine.grad, whole.grad[RANK::COUNT]),
            "weight gradient": (several.weight.grad, one.weight.grad),
            "bias gradient": (several.bias.grad, one.bias.grad),
            "mean": (several.running_mean, one.running_mean),
            "variance": (several.running_var, one.running_var),
        }
        for name, (found, expected) in pairs.items():
            apart[name] = max(apart.get(name, 0), float((found - expected).norm() / expected.norm()))
        several.zero_grad()
        one.zero_grad()
    assert several.num_batches_tracked == one.num_batches_tracked
    return apart


def read_first(path: str) -> str:
    """The text of a file that the first process alone looks for."""
    return read_on_first(lambda: Path(path if RANK == 0 else "/nowhere").read_text())


JOBS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (train, go_on, cut, batch_norm, read_first)
}


def main() -> None:
    torch.set_num_threads(1)
    faulthandler.enable()
    faulthandler.dump_traceback_later(PATIENCE, repeat=False, exit=True)
    request = Path(sys.argv[1])
    results: list[Any] = []
    for job in json.loads(request.read_text()):
        name = job.pop("do")
        try:
            results.append(JOBS[name](**job))
        except (ValueError, OSError) as error:
            results.append({"error": str(error)})
    request.with_suffix(f".{RANK}").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
