"""One process or many: what Accelerate does, and the sharding it leaves to torch.

FSDP2 is applied here with torch's ``fully_shard``, in the same way on GPUs and on CPUs, where Accelerate has none; so
what runs on a cluster is what the tests run.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from openfastervit.training.recipe import LoopSettings

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Processes:
    """The processes that train together; one alone is such a group too.

    Args:
        settings: Device, precision, how the network is spread.

    Raises:
        ValueError: If the device is not there.
    """

    def __init__(self, settings: LoopSettings) -> None:
        device = settings.device
        if device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device={device!r} must be auto, cpu or cuda (each process takes its own GPU)")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device='cuda', but torch finds no GPU; take device auto or cpu")
        if settings.precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
            raise ValueError("precision=fp16 needs a GPU; on a CPU take bf16 or fp32")
        # `accelerate launch --use_fsdp` says so in the environment, which Accelerate would act on by itself.
        launched_sharded = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
        AcceleratorState._reset_state()  # of an earlier run in this process; the process group stays
        self.accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision={"fp32": "no"}.get(settings.precision, settings.precision),
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    find_unused_parameters=settings.find_unused_parameters, gradient_as_bucket_view=True
                ),
                InitProcessGroupKwargs(timeout=timedelta(minutes=30)),
            ],
        )
        self.rank = self.accelerator.process_index
        self.count = self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        self.device = self.accelerator.device
        self.sharded = (settings.sharding == "fsdp2" or launched_sharded) and self.count > 1
        # Flags travel over CPUs, so that agreeing on them does not wait for the GPU.
        self._control = _control_group() if self.count > 1 else None

    def shard(self, model: nn.Module) -> None:
        """Share the network out among the processes, in place: a unit for each block, one for the rest."""
        mesh = init_device_mesh(self.device.type, (self.count,))
        for stage in getattr(model, "stages", []):
            for block in getattr(stage, "blocks", None) or getattr(getattr(stage, "attention", None), "blocks", []):
                fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def copies(self, model: nn.Module) -> nn.Module:
        """The network as one of several equal copies that add up their gradients (DDP)."""
        wrapped = self.accelerator.prepare_model(model)
        assert isinstance(wrapped, nn.Module)
        return wrapped

    @contextlib.contextmanager
    def accumulating(self, model: nn.Module, more: bool) -> Iterator[None]:
        """Leave gradients where they are while ``more`` batches of the same update follow."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(not more)
            yield
        elif more:
            with self.accelerator.no_sync(model):
                yield
        else:
            yield

    def agree(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all processes."""
        if self._control is None:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(together, group=self._control)
        return together.tolist()

    def gather(self, objects: list[Any]) -> list[Any]:
        """The objects of all processes, in the order of the processes."""
        gathered: list[Any] = gather_object(objects) if self.count > 1 else objects
        return gathered

    def broadcast(self, value: Any) -> Any:
        """What the first process has."""
        held = [value]
        if self.count > 1:
            broadcast_object_list(held)
        return held[0]

    def broadcast_tensors(self, values: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first process's tensors, of the shapes of ``like``."""
        if self.count == 1:
            return dict(values)
        sent = {}
        for name, place in like.items():
            tensor = values[name].to(place) if self.is_main else torch.empty_like(place)
            dist.broadcast(tensor.contiguous(), src=0) if self.is_main else dist.broadcast(tensor, src=0)
            sent[name] = tensor
        return sent

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()


def _control_group() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, in one piece."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whole states of network and optimiser, on the CPU; empty on other processes than the first where sharded."""
    return get_state_dict(model, optimizer, options=_WHOLE)


def load_full_state(
    processes: Processes,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, Any],
    optimizer_state: dict[str, Any],
) -> None:
    """Load what ``full_state`` gave on the first process into all of them, however many there are now."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=processes.count > 1)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=optimizer_state, options=options)


def loader_workers(asked: int | None, processes: Processes) -> int:
    """Worker processes of a loader: as many as asked for, or as this process has cores, at most 8."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
