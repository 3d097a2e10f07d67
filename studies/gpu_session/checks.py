"""Each kernel against plain torch in float64, on the family's shapes, with inputs drawn anew each time.

What a kernel leaves unwritten is NaN: torch fills what it hands out. The bound is on the norm of the difference over
the norm of what is right. Beside it stands how far plain torch is off in the same precision.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BOUNDS: dict[str, float] = {"fp32": 1e-5, "bf16": 8e-3, "fp16": 1e-3}
"""Of a forward pass: in bfloat16 and float16 two units in the last place. A backward pass has twice that."""

ATTENTION, BACKWARD, LINEAR, CONVOLUTION = (
    "window attention",
    "window attention, backward",
    "linear",
    "convolution",
)


@dataclass(frozen=True)
class Check:
    """A kernel on one shape."""

    kernel: str
    dtype: str
    shape: str
    """In words."""
    values: Mapping[str, Any] = field(hash=False)
    """The same for the kernel's function below."""


@dataclass(frozen=True)
class _Windows:
    images: int
    counts: tuple[int, int]
    window: tuple[int, int]
    carrier_size: int
    heads: int
    width: int
    strided: bool = False
    """Projections are a part of a larger tensor."""

    def __str__(self) -> str:
        tokens = self.carrier_size**2 + self.window[0] * self.window[1]
        told = f"{tokens} tokens ({self.carrier_size**2} carriers), {self.heads} heads of {self.width}, "
        told += f"{self.images} x {self.counts[0]} x {self.counts[1]} windows"
        return told + (", strided" if self.strided else "")


def checks(*, small: bool) -> dict[str, list[Check]]:
    """All checks, by group: those of a group follow one another in a process.

    Args:
        small: A few small shapes, for Triton's interpreter.
    """
    groups: dict[str, list[Check]] = {}
    for dtype in DTYPES:
        for kernel, shapes in (
            (ATTENTION, _SMALL_WINDOWS if small else _WINDOWS),
            (BACKWARD, _SMALL_WINDOWS[:1] if small else _WINDOWS),
        ):
            group = groups.setdefault("all" if small else f"{kernel}, {dtype}", [])
            group += [Check(kernel, dtype, str(shape), vars(shape)) for shape in shapes]
        for kernel, cases in (
            (LINEAR, _SMALL_LINEARS if small else _LINEARS),
            (CONVOLUTION, _SMALL_CONVOLUTIONS if small else _CONVOLUTIONS),
        ):
            group = groups.setdefault("all" if small else f"{kernel}, {dtype}", [])
            group += [Check(kernel, dtype, _in_words(values), values) for values in cases]
    return groups


def label(check: Check) -> dict[str, Any]:
    """What names a check's row."""
    return {"kernel": check.kernel, "dtype": check.dtype, "shape": check.shape}


def make(check: Check, device: str) -> list[dict[str, Any]]:
    """The row of a check."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)  # with it goes filling new memory
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    seed = random.SystemRandom().randrange(2**31)
    torch.manual_seed(seed)
    found, plain, right = _KERNELS[check.kernel](check, torch.device(device))
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    bound = BOUNDS[check.dtype] * (2 if check.kernel == BACKWARD else 1)
    error = error_of(found, right)
    passed = error <= bound  # NaN does not
    return [
        {
            **label(check),
            "error": f"{error:.3g}",
            "bound": f"{bound:.3g}",
            "plain_error": f"{error_of(plain, right):.3g}",
            "seed": seed,
            "status": "ok" if passed else "failed: the error is above the bound",
        }
    ]


def error_of(found: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest relative error, by norm, of some tensors; NaN if any of them holds one."""
    errors = torch.stack(
        [
            (one.double() - other).norm() / other.norm().clamp_min(torch.finfo(torch.float64).tiny)
            for one, other in zip(found, right, strict=True)
        ]
    )
    return float(errors.max())  # torch's maximum is NaN where one is


Results = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]
"""Of the kernel, of plain torch in the same precision, of plain torch in float64."""


def _windows(check: Check, device: torch.device) -> tuple[list[Tensor], dict[str, Any]]:
    """Projections, carriers where there are, and the table; and the options."""
    shape = _Windows(**check.values)
    (h, w), (n_h, n_w), c = shape.window, shape.counts, shape.carrier_size
    channels, dtype = 3 * shape.heads * shape.width, DTYPES[check.dtype]
    qkv = torch.randn(shape.images, n_h * h, n_w * w, channels + (8 if shape.strided else 0), device=device).to(dtype)
    tensors = [qkv[..., :channels]]
    if c:
        tensors.append(torch.randn(shape.images, c * n_h, c * n_w, channels, device=device).to(dtype))
    tensors.append(torch.randn(shape.heads, 2 * h - 1, 2 * w - 1, device=device))
    return tensors, {"num_heads": shape.heads, "window": shape.window, "carrier_size": c}


def _attend(function: Callable[..., Any], tensors: Sequence[Tensor], options: Mapping[str, Any]) -> list[Tensor]:
    qkv, *carriers, table = tensors
    found = function(qkv, carriers[0] if carriers else None, table, **options)
    return [one for one in found if one is not None]


def _attention(check: Check, device: torch.device) -> Results:
    from openfastervit.kernels.window_attention import window_attention, window_attention_reference

    tensors, options = _windows(check, device)
    with torch.no_grad():
        return (
            _attend(window_attention, tensors, options),
            _attend(window_attention_reference, tensors, options),
            _attend(window_attention_reference, [one.double() for one in tensors], options),
        )


def _attention_backward(check: Check, device: torch.device) -> Results:
    from openfastervit.kernels.window_attention import window_attention, window_attention_reference

    tensors, options = _windows(check, device)
    with torch.no_grad():
        grads = [torch.randn_like(one) for one in _attend(window_attention_reference, tensors, options)]

    def gradients(function: Callable[..., Any], *, double: bool) -> Sequence[Tensor]:
        inputs = [(one.double() if double else one).detach().requires_grad_() for one in tensors]
        outputs = _attend(function, inputs, options)
        return torch.autograd.grad(outputs, inputs, [one.double() if double else one for one in grads])

    return (
        gradients(window_attention, double=False),
        gradients(window_attention_reference, double=False),
        gradients(window_attention_reference, double=True),
    )


def _linear(check: Check, device: torch.device) -> Results:
    from openfastervit.kernels.linear import linear, linear_reference

    values, dtype = check.values, DTYPES[check.dtype]
    rows, k, n = values["rows"], values["k"], values["n"]
    # Norms' weights are in the layer's: x need not be near 0 nor of norm 1.
    x = (0.5 + 2 * torch.randn(rows, k, device=device)).to(dtype)
    weight = (torch.randn(n, k, device=device) / k**0.5).to(dtype)
    tensors: dict[str, Tensor] = {"x": x, "weight": weight, "bias": torch.randn(n, device=device).to(dtype)}
    options: dict[str, Any] = {"activation": values.get("activation", "none")}
    if values.get("norm"):
        options["norm_eps"] = 1e-5
    if values.get("residual"):
        tensors["residual"] = torch.randn(rows, n, device=device).to(dtype)
    if "table_rows" in values:
        options["table_rows"] = values["table_rows"]
        tensors["table"] = torch.randn(sum(values["table_rows"][1:]), n, device=device).to(dtype)
    return _forward(linear, linear_reference, tensors, options)


def _convolution(check: Check, device: torch.device) -> Results:
    from openfastervit.kernels.convolution import convolution, convolution_reference

    values, dtype = check.values, DTYPES[check.dtype]
    images, side, inside, outside = values["images"], values["side"], values["inside"], values["outside"]
    stride = values.get("stride", 1)

    def channels_last(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)

    tensors: dict[str, Any] = {
        "x": 0.5 + channels_last(images, inside, side, side),
        "weight": channels_last(outside, inside, 3, 3) / (9 * inside) ** 0.5,
        "bias": torch.randn(outside, device=device).to(dtype),
    }
    options: dict[str, Any] = {"stride": stride, "padding": 1, "activation": values.get("activation", "none")}
    if values.get("norm"):
        tensors["norm"] = tuple(torch.randn(inside, device=device).to(dtype) for _ in range(2))
    if values.get("residual"):
        tensors["residual"] = channels_last(images, outside, -(-side // stride), -(-side // stride))
    return _forward(convolution, convolution_reference, tensors, options)


def _forward(
    kernel: Callable[..., Tensor], reference: Callable[..., Tensor], tensors: dict[str, Any], options: dict[str, Any]
) -> Results:
    """Results of one tensor each; a norm's weight and bias come with its epsilon."""

    def call(function: Callable[..., Tensor], double: bool) -> list[Tensor]:
        given = torch.utils._pytree.tree_map(lambda one: one.double() if double else one, tensors)
        if "norm" in given:
            given["norm"] = (*given["norm"], 1e-6)
        with torch.no_grad():
            return [function(**given, **options)]

    return call(kernel, False), call(reference, False), call(reference, True)


_KERNELS: dict[str, Callable[[Check, torch.device], Results]] = {
    ATTENTION: _attention,
    BACKWARD: _attention_backward,
    LINEAR: _linear,
    CONVOLUTION: _convolution,
}

# fastervit_0 to _4 have heads of 32, 40, 48, 64 and 49. Windows: 53 tokens with carriers, 49 without, 16 carriers that
# attend to one another, 144 tokens of windows of 12.
_WINDOWS: Sequence[_Windows] = (
    *(_Windows(4, (2, 2), (7, 7), 2, heads, width) for heads, width in ((8, 32), (8, 40), (8, 48), (8, 64), (16, 49))),
    *(_Windows(8, (1, 1), (7, 7), 0, heads, width) for heads, width in ((16, 32), (16, 48), (32, 49))),
    *(_Windows(8, (1, 1), (4, 4), 0, heads, width) for heads, width in ((8, 32), (8, 64), (16, 49))),
    *(_Windows(4, (1, 1), (12, 12), 0, heads, width) for heads, width in ((16, 48), (32, 49))),
    _Windows(2, (3, 5), (7, 7), 2, 8, 32, strided=True),
    _Windows(2, (2, 3), (6, 9), 1, 4, 16),
)
_SMALL_WINDOWS: Sequence[_Windows] = (
    _Windows(1, (1, 2), (7, 7), 2, 1, 49),
    _Windows(1, (1, 1), (4, 4), 0, 1, 32, strided=True),
)
_LINEARS: Sequence[dict[str, Any]] = (
    *({"rows": 848, "k": k, "n": 3 * k, "norm": True} for k in (256, 320, 512, 784)),
    *({"rows": 848, "k": k, "n": 4 * k, "norm": True, "activation": "gelu"} for k in (256, 512, 784)),
    *({"rows": 848, "k": 4 * k, "n": k, "residual": True} for k in (256, 512, 784)),
    {"rows": 848, "k": 256, "n": 256, "residual": True, "table_rows": (784, 49, 16)},
    {"rows": 53, "k": 1568, "n": 1000},
)
_SMALL_LINEARS: Sequence[dict[str, Any]] = (
    {"rows": 20, "k": 40, "n": 24, "norm": True, "activation": "gelu"},
    {"rows": 20, "k": 24, "n": 40, "residual": True, "table_rows": (16, 4, 2)},
)
_CONVOLUTIONS: Sequence[dict[str, Any]] = (
    {"images": 2, "side": 56, "inside": 64, "outside": 64, "activation": "gelu"},
    {"images": 2, "side": 56, "inside": 64, "outside": 64, "residual": True},
    {"images": 2, "side": 28, "inside": 128, "outside": 128, "activation": "gelu"},
    {"images": 2, "side": 28, "inside": 392, "outside": 392, "residual": True},
    {"images": 2, "side": 112, "inside": 64, "outside": 64, "stride": 2, "activation": "relu"},
    {"images": 2, "side": 224, "inside": 3, "outside": 64, "stride": 2, "activation": "relu"},
    {"images": 2, "side": 56, "inside": 64, "outside": 128, "stride": 2, "norm": True},
    {"images": 2, "side": 28, "inside": 392, "outside": 784, "stride": 2, "norm": True},
    {"images": 2, "side": 15, "inside": 80, "outside": 160, "stride": 2, "norm": True},
)
_SMALL_CONVOLUTIONS: Sequence[dict[str, Any]] = (
    {"images": 1, "side": 6, "inside": 8, "outside": 16, "activation": "gelu", "residual": True},
    {"images": 1, "side": 7, "inside": 12, "outside": 24, "stride": 2, "norm": True},
)


def _in_words(values: Mapping[str, Any]) -> str:
    numbers = {name: value for name, value in values.items() if value is not True}
    told = [f"{name.replace('_', ' ')} {value}" for name, value in numbers.items()]
    return ", ".join([*told, *(name for name, value in values.items() if value is True)])
