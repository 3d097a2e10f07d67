"""A network shared out among processes: torch's FSDP2, in the same way on GPUs and on CPUs, where Accelerate has none.

So what runs on a cluster is what the tests run.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def shard(model: nn.Module, device: torch.device, processes: int) -> None:
    """Share a network out among the processes, in place: a unit for each block, one for the rest."""
    mesh = _mesh(device, processes)
    # An attention block's output is a view, which is harmless: nothing writes into it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for stage in getattr(model, "stages", []):
        for block in getattr(stage, "blocks", None) or getattr(getattr(stage, "attention", None), "blocks", []):
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, in one piece; all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_optimizer(
    name: str, create: Callable[[nn.Module], torch.optim.Optimizer], device: torch.device, processes: int
) -> None:
    """See on a small network that an optimiser makes the same steps with sharded weights as with whole ones.

    Not every optimiser does: some look at the piece of a matrix that a process has as if it were all of it.

    Args:
        name: Of the optimiser, for the error.
        create: Makes it, for a network.
        device: Where to try it.
        processes: How many there are; all of them must call this.

    Raises:
        ValueError: If it does not.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ends = []
        for mesh in (None, _mesh(device, processes)):
            torch.manual_seed(0)
            # No norm behind the convolution: its bias would have no gradient but rounding, which Adam makes steps of.
            network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 6)).to(device)
            if mesh is not None:
                fully_shard(network, mesh=mesh)
            try:
                ends.append(_steps(network, create(network)))
            except Exception as error:
                if mesh is None:
                    raise
                reason = " ".join(str(error).split())[:200]
                raise ValueError(f"{_refusal(name)} ({type(error).__name__}: {reason})") from error
    for one, other in zip(*ends, strict=True):
        if not (one - other).norm() <= 1e-3 * one.norm():
            raise ValueError(_refusal(name))


def _steps(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """How weights change in a few steps; each process takes the same images, so that their mean gradient is its own."""
    before = [whole(parameter.detach()).clone() for parameter in network.parameters()]
    images = torch.randn(4, 3, 3, 3).to(next(network.parameters()).device)
    for _ in range(3):
        network(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [whole(after.detach()) - first for after, first in zip(network.parameters(), before, strict=True)]


def _refusal(name: str) -> str:
    return f"optimizer={name!r} does not work on weights that FSDP2 shards; take adamw, lamb or sgd, or sharding none"


def _mesh(device: torch.device, processes: int) -> DeviceMesh:
    return init_device_mesh(device.type, (processes,))
