"""One process or many: who they are, what they tell each other, what is saved of a network spread over them."""

import atexit
import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

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
        sharded = settings.sharding == "fsdp2" or _launched("FSDP")
        if sharded and settings.precision == "fp16":
            raise ValueError("FSDP2 does not scale fp16 gradients; take precision bf16")
        for name in ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
            if _launched(name):
                raise ValueError(f"accelerate launch asks for {name.lower()}; take plain processes, or --use_fsdp")
        AcceleratorState._reset_state()  # of an earlier run in this process; the process group stays
        # `accelerate launch --use_fsdp` says so in the environment, which Accelerate would act on by itself.
        with _without("ACCELERATE_USE_FSDP"):
            self.accelerator = Accelerator(
                cpu=device == "cpu",
                mixed_precision={"fp32": "no"}.get(settings.precision, settings.precision),
                kwargs_handlers=[
                    DistributedDataParallelKwargs(
                        find_unused_parameters=settings.find_unused_parameters,
                        gradient_as_bucket_view=True,
                        broadcast_buffers=False,  # the statistics of batch norm are averaged after each update
                    ),
                    InitProcessGroupKwargs(timeout=timedelta(minutes=30)),
                ],
            )
        self.rank = self.accelerator.process_index
        self.count = self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        self.device = self.accelerator.device
        self.sharded = sharded and self.count > 1
        self._control = _control_group() if self.count > 1 else None

    def copies(self, model: nn.Module) -> nn.Module:
        """The network as one of several equal copies that add up their gradients (DDP)."""
        # torch would call it forward_sync_buffers, which Accelerate does not know; and a stride of an axis of length 1,
        # which means nothing, is found to be another one.
        for message in ("`broadcast_buffers` is deprecated", "Grad strides do not match bucket view strides"):
            warnings.filterwarnings("ignore", message=message)
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

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor, in place, the mean of those of all processes."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.count).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

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
            # What travels is memory, so that it must be laid out alike on both sides.
            tensor = torch.empty_like(place, memory_format=torch.contiguous_format)
            if self.is_main:
                tensor.copy_(values[name])
            dist.broadcast(tensor, src=0)
            sent[name] = tensor
        return sent

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()


def _launched(kind: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true"


@contextlib.contextmanager
def _without(variable: str) -> Iterator[None]:
    """Hide a variable of the environment."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


@functools.cache
def _control_group() -> dist.ProcessGroup:
    """A group over CPUs, so that agreeing on flags does not wait for the GPU."""
    # A process that ends while its groups' threads run may crash or hang, after all is done.
    atexit.register(dist.destroy_process_group)
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def full_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whole states of network and optimiser, on the CPU; empty on other processes than the first where sharded."""
    weights, state = get_state_dict(model, optimizer, options=_WHOLE)
    # What is loaded travels as memory, so that it must be laid out alike on all sides.
    return weights, tree_map_only(Tensor, Tensor.contiguous, state)


def load_full_state(
    processes: Processes,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, Any],
    optimizer_state: dict[str, Any],
) -> None:
    """Load what ``full_state`` gave on the first process into all of them, however many there are now."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=processes.count > 1)
    set_model_state_dict(model, weights, options=options)
    # Parameters that took no part in any step have no state: a network may leave some unused at small image sizes.
    set_optimizer_state_dict(model, optimizer, optimizer_state, options=replace(options, strict=False))
    stepped = processes.broadcast(list(optimizer_state.get("state", {})))
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    for name, parameter in plain.named_parameters():
        if name not in stepped:
            optimizer.state.pop(parameter, None)  # torch has made one
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                # Laid out as the weights are: optimisers are several times as fast then.
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


_stores: list[dist.Store] = []
"""Kept, since one of them may serve the others."""


def read_on_first(read: Callable[[], str]) -> str:
    """What the first process reads from a file that others may not see; asked before there are ``Processes``.

    Raises:
        OSError, ValueError: If it cannot be read, on all processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return read()
    store, rank, _ = next(iter(rendezvous("env://")))
    _stores.append(store)
    key = f"openfastervit/read/{len(_stores)}"
    if rank == 0:
        try:
            text = read()
        except (OSError, ValueError) as error:
            store.set(key, f"!{error}")
            raise
        store.set(key, f"={text}")
        return text
    answer = bytes(store.get(key)).decode("utf-8", errors="surrogateescape")
    if answer.startswith("!"):
        raise ValueError(answer[1:])
    return answer[1:]


def loader_workers(asked: int | None, processes: Processes) -> int:
    """Worker processes of a loader: as many as asked for, or as this process has cores, at most 8."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
