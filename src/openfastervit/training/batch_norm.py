"""Batch norm whose statistics are those of all processes' images, on any device.

torch's ``SyncBatchNorm`` refuses CPUs; on GPUs it is what is used.
"""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from torch import Tensor, nn


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """``BatchNorm2d`` with the mean and variance of the batches of all processes, which must be of one size."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        processes = dist.get_world_size()
        moments = torch.stack([x.mean(dim=(0, 2, 3)), x.square().mean(dim=(0, 2, 3))])
        mean, square = dist_functional.all_reduce(moments) / processes
        variance = square - mean.square()
        with torch.no_grad():
            self.num_batches_tracked += 1
            count = x.numel() / x.shape[1] * processes
            rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance * count / (count - 1), rate)
        shape = (1, -1, 1, 1)
        x = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        return x * self.weight.view(shape) + self.bias.view(shape)


def synchronise_batch_norm(network: nn.Module) -> nn.Module:
    """Replace batch norms by ones over all processes, in place where it can be; the same names of parameters."""
    if torch.cuda.is_available():
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        assert isinstance(synchronised, nn.Module)
        return synchronised
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d
    return network
