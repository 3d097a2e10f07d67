"""Triton kernels for GPUs, each beside its plain torch reference.

Opt-in: networks reach them through ``openfastervit.layers.attention`` and ``openfastervit.inference.kernel_network``
alone, and run without them where ``unavailable`` says why. Nothing here imports Triton before a kernel is asked for.
"""

from openfastervit.kernels.availability import unavailable

__all__ = ["unavailable"]
