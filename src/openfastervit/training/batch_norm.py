"""Batch norm on several processes: statistics of all their images, or their own ones, averaged for later use.

torch's ``SyncBatchNorm`` refuses CPUs; on GPUs it is what is used.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes, whose losses all depend on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _mean_over_processes(x: Tensor) -> Tensor:
    mean: Tensor = _SumOverProcesses.apply(x) / dist.get_world_size()
    return mean


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """``BatchNorm2d`` with the mean and variance of the batches of all processes, which must be of one size."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        if not self.training:
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        shape = (1, -1, 1, 1)
        mean = _mean_over_processes(values.mean(dim=(0, 2, 3)))
        values = values - mean.view(shape)
        variance = _mean_over_processes(values.square().mean(dim=(0, 2, 3)))
        if self.running_mean is not None:
            self._track(mean.detach(), variance.detach(), values.numel() // values.shape[1] * dist.get_world_size())
        values = values * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            values = values * self.weight.view(shape) + self.bias.view(shape)
        return values.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance * count / (count - 1), rate)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace batch norms by ones over all processes, in place where it can be; the same names of parameters.

    Raises:
        ValueError: If the device is a CPU, and a batch norm is of another kind than ``BatchNorm2d``.
    """
    if device.type != "cpu":
        # timm's function keeps the activation that its own batch norms carry; torch's loses it.
        synchronised = convert_sync_batchnorm(network)
        assert isinstance(synchronised, nn.Module)
        return synchronised
    for name, module in network.named_modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d
        elif isinstance(module, _BatchNorm) and not isinstance(module, GlobalBatchNorm2d):
            raise ValueError(
                f"sync_batch_norm: on CPUs it knows BatchNorm2d alone, and {name} is a {type(module).__name__}; "
                "leave it out, or train on GPUs"
            )
    return network


def apart(network: nn.Module, besides: Collection[nn.Module] = ()) -> list[_BatchNorm]:
    """The batch norms whose running statistics each process computes of its own images.

    Args:
        network: With its batch norms, synchronised or not.
        besides: Modules that learn no statistics.
    """
    return [
        module
        for module in network.modules()
        # timm's synchronised batch norm is a SyncBatchNorm too.
        if isinstance(module, _BatchNorm)
        and not isinstance(module, nn.SyncBatchNorm | GlobalBatchNorm2d)
        and module not in besides
    ]


def statistics(norms: Sequence[_BatchNorm]) -> list[Tensor]:
    """Their running means and variances, as they are now: wrapping a network may give it other tensors."""
    values = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    return [value for value in values if value is not None]
