"""Gradient checkpointing of modules that hold batch norm."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def _paused(module: nn.Module) -> Iterator[None]:
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    states = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # The kernel must see the same tensors as the first time, so it averages with weight 0 instead of being skipped.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, states, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _paused(module)


def recompute(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``, keeping no activations: the backward pass computes them again.

    The second time does not update the running statistics, so that training is the same as without recomputation.
    """
    if torch.compiler.is_compiling():  # a compiled graph has the update once, outside of what is recomputed
        return checkpoint(module, x, use_reentrant=False)
    return checkpoint(module, x, use_reentrant=False, context_fn=partial(_contexts, module))
