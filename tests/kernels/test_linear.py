"""The fused linear layer in Triton's interpreter, against float64."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openfastervit.kernels.linear import CONFIGS, Config, linear, linear_reference
from tests.kernels.errors import TYPES, check, distance

SMALL = Config(16, 16, 16, 4, 1)


def expected(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_eps: float | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    table: Tensor | None = None,
    table_rows: tuple[int, int, int] | None = None,
) -> Tensor:
    """The definition once more, in float64, one thing after the other and row by row where there is a table."""
    x, y = x.double(), weight.double()
    if norm_eps is not None:
        x = x - x.mean(1, keepdim=True)
        x = x / (x.square().mean(1, keepdim=True) + norm_eps).sqrt()
    y = x @ y.T
    if bias is not None:
        y = y + bias.double()
    if activation == "gelu":
        y = y * (1 + torch.erf(y / 2**0.5)) / 2
    if activation == "relu":
        y = y * (y > 0)
    if residual is not None:
        y = y + residual.double()
    if table is not None:
        split, first, second = table_rows or (len(x), len(table), 1)
        for row in range(len(x)):
            y[row] += table[row % first if row < split else first + (row - split) % second].double()
    return y


def inputs(m: int, k: int, n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(m, k).to(dtype),
        (torch.randn(n, k) / k**0.5).to(dtype),
        torch.randn(n).to(dtype),
    )


def compare(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, config: Config | None = None, **options: Any
) -> None:
    exact = expected(x, weight, bias, **options)
    check(linear(x, weight, bias, config=config, **options), exact, linear_reference(x, weight, bias, **options))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("k", "n"),
    [(256, 768), (320, 320), (384, 192), (512, 130), (784, 98), (1568, 49), (392, 196), (196, 392), (80, 49)],
)
def test_widths_of_the_family(k: int, n: int, dtype: torch.dtype) -> None:
    x, weight, bias = inputs(37, k, n, dtype)
    compare(x, weight, bias, norm_eps=1e-5, activation="gelu")
    compare(x, weight, bias, residual=torch.randn(37, n).to(dtype))


@pytest.mark.parametrize(
    ("norm_eps", "activation", "has_bias"),
    list(itertools.product((None, 1e-5), ("none", "relu", "gelu"), (True, False))),
)
def test_everything_with_everything(norm_eps: float | None, activation: str, has_bias: bool) -> None:
    x, weight, bias = inputs(21, 40, 23)
    for residual, table in itertools.product((None, torch.randn(21, 23)), (None, torch.randn(9, 23))):
        rows = None if table is None else (11, 3, 6)
        options = {"norm_eps": norm_eps, "activation": activation, "residual": residual}
        compare(x, weight, bias if has_bias else None, SMALL, table=table, table_rows=rows, **options)


@pytest.mark.parametrize(
    ("count", "rows"), [(7, None), (1, None), (7, (0, 1, 6)), (7, (37, 7, 1)), (7, (16, 2, 5)), (7, (1000, 3, 4))]
)
def test_rows_of_the_table(count: int, rows: tuple[int, int, int] | None) -> None:
    x, weight, _ = inputs(37, 16, 20)
    compare(x, weight, None, SMALL, table=torch.randn(count, 20), table_rows=rows)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_config(config: Config) -> None:
    x, weight, bias = inputs(140, 150, 270)
    compare(x, weight, bias, config, norm_eps=1e-6, activation="gelu", residual=torch.randn(140, 270))


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(TYPES),
    st.sampled_from((None, 1e-5)),
    st.sampled_from((16, 32)),
    st.sampled_from((16, 64)),
)
@settings(max_examples=40, deadline=None)
def test_sizes_that_no_tile_divides(
    m: int, k: int, n: int, dtype: torch.dtype, norm_eps: float | None, block: int, block_k: int
) -> None:
    x, weight, bias = inputs(m, k, n, dtype)
    residual = torch.randn(m, n).to(dtype)
    config = Config(block, 16, block_k, 4, 1)
    compare(x, weight, bias, config, norm_eps=norm_eps, activation="relu", residual=residual)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_writes_over_the_residual(dtype: torch.dtype) -> None:
    x, weight, bias = inputs(50, 48, 40, dtype)
    residual = torch.randn(50, 40).to(dtype)
    exact = expected(x, weight, bias, residual=residual)
    plain = linear_reference(x, weight, bias, residual=residual)
    found = linear(x, weight, bias, residual=residual, out=residual, config=SMALL)
    assert found is residual
    check(residual, exact, plain)


def test_writes_all_of_out_and_nothing_else() -> None:
    x, weight, bias = inputs(37, 20, 23)
    around = torch.full((39, 50), torch.nan)
    out = around[1:38, 7:30]
    assert linear(x, weight, bias, out=out, config=SMALL) is out
    assert distance(out, expected(x, weight, bias)) < 1e-5
    assert around.isfinite().sum() == out.numel()


def test_rows_that_lie_apart() -> None:
    around = torch.randn(37, 90)
    x, residual = around[:, 5:45], around[:, 60:83]
    weight, table = torch.randn(23, 64)[:, 3:43], torch.randn(5, 30)[:, :23]
    compare(x, weight, None, SMALL, norm_eps=1e-5, residual=residual, table=table)
    # Columns beside those that are read may be written.
    exact = expected(x, weight)
    assert distance(linear(x, weight, out=residual, config=SMALL), exact) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bias_and_table_of_float32(dtype: torch.dtype) -> None:
    x, weight, _ = inputs(20, 32, 24, dtype)
    bias, table = torch.randn(24), torch.randn(20, 24)
    found = linear(x, weight, bias, table=table, config=SMALL)
    assert found.dtype == dtype
    # Nothing is rounded but the result.
    assert distance(found, expected(x, weight, bias, table=table)) < torch.finfo(dtype).eps / 2


def test_variance_of_rows_far_from_zero() -> None:
    """Where the mean of squares less the square of the mean has no correct digit."""
    x, weight, _ = inputs(33, 200, 16)
    x = x + torch.linspace(-3000, 3000, 33)[:, None]
    x[:, 0] *= 5  # not the mean of its row, nor near to it
    exact = expected(x, weight, norm_eps=1e-6)
    found = distance(linear(x, weight, norm_eps=1e-6, config=SMALL), exact)
    plain = distance(F.layer_norm(x, (200,), eps=1e-6) @ weight.T, exact)
    assert found < 2 * plain + 1e-6


def test_zeros_beyond_the_row_are_not_normalised() -> None:
    """In float16 they would be infinite behind rows of one value, and infinity times a masked weight is no number."""
    weight, bias = torch.randn(16, 20).half(), torch.randn(16).half()
    compare(torch.full((16, 20), 1000.0).half(), weight, bias, SMALL, norm_eps=1e-6)


def test_no_rows() -> None:
    assert linear(torch.empty(0, 8), torch.randn(5, 8)).shape == (0, 5)


def test_values_that_are_not_finite_stay_in_their_row() -> None:
    x, weight, bias = inputs(20, 16, 8)
    x[3, 2] = torch.nan
    found = linear(x, weight, bias, norm_eps=1e-5, config=SMALL)
    assert found[3].isnan().all()
    assert found.isfinite().all(dim=1).sum() == 19


X, WEIGHT = torch.randn(6, 8), torch.randn(5, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": X.double()}, "x is torch.float64.*linear_reference"),
        ({"x": X[0]}, r"x must be \(M, K\).*\[8\]"),
        ({"x": torch.randn(6, 16)[:, ::2]}, "x has channels 2 elements apart"),
        ({"weight": torch.randn(5, 7)}, r"weight must be \(N, 8\).*\[5, 7\]"),
        ({"weight": WEIGHT.half()}, "weight is torch.float16"),
        ({"weight": torch.randn(8, 5).T}, "weight has channels 5 elements apart"),
        ({"weight": WEIGHT.to("meta")}, "weight is on meta, x on cpu"),
        ({"weight": WEIGHT.clone().requires_grad_()}, "weight requires a gradient"),
        ({"bias": torch.randn(4)}, r"bias must be \[5\], not \[4\]"),
        ({"bias": torch.randn(5).half()}, "bias is torch.float16"),
        ({"activation": "silu"}, "activation='silu' is none of none, relu, gelu"),
        ({"residual": torch.randn(6, 4)}, r"residual must be \[6, 5\]"),
        ({"table": torch.randn(3, 4)}, r"table must be \(P, 5\)"),
        ({"table_rows": (1, 2, 3)}, "table is None"),
        ({"table": torch.randn(3, 5), "table_rows": (1, 0, 3)}, "table_rows"),
        ({"table": torch.randn(3, 5), "table_rows": (1, 2, 2)}, "reads 4 rows, table has 3"),
        ({"out": torch.empty(5, 5)}, r"out must be \[6, 5\]"),
        ({"out": torch.empty(6, 5).half()}, "out is torch.float16"),
        ({"out": torch.empty(1, 5).expand(6, 5)}, "out has rows of 5 elements, 0 apart"),
        ({"config": Config(16, 24, 16, 4, 1)}, "config has block_n=24"),
        ({"config": Config(8, 16, 16, 4, 1)}, "config has block_m=8"),
        ({"config": Config(16, 16, 16, 3, 1)}, "num_warps"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear(**({"x": X, "weight": WEIGHT} | options))


def test_out_must_not_lie_where_others_are_read() -> None:
    around = torch.randn(7, 20)
    x, weight, residual = around[:6, :8], torch.randn(8, 8), around[:6, 8:16]
    linear(x, weight, residual=residual, out=residual)
    for name, out in {
        "x": x,
        "x ": around[:6, 7:15],
        "weight": weight[:6],
        "residual": around[1:, 8:16],
        "residual ": around[:6, 9:17],
    }.items():
        with pytest.raises(ValueError, match=f"out shares memory with {name.strip()}"):
            linear(x, weight, residual=residual, out=out)


def test_gradients_may_be_wanted_elsewhere() -> None:
    weight = WEIGHT.clone().requires_grad_()
    with torch.no_grad():
        assert distance(linear(X, weight), expected(X, weight)) < 1e-5


def test_without_a_chip_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="x is on cpu: kernels run on GPUs"):
        linear(X, WEIGHT)


def test_reference_is_of_any_type_and_differentiable() -> None:
    x, weight, bias = (tensor.double().requires_grad_() for tensor in inputs(9, 8, 5))
    options = {"norm_eps": 1e-3, "activation": "gelu", "residual": torch.randn(9, 5), "table": torch.randn(4, 5)}
    found = linear_reference(x, weight, bias, **options)  # type: ignore[arg-type]
    assert distance(found, expected(x, weight, bias, **options)) < 1e-12  # type: ignore[arg-type]
    found.sum().backward()
    assert weight.grad is not None
    out = torch.empty(9, 5, dtype=torch.float64)
    with torch.no_grad():
        assert linear_reference(x, weight, out=out) is out
    assert distance(out, expected(x, weight)) < 1e-12
