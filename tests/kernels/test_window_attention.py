"""Window attention by kernels, in Triton's interpreter where there is no GPU, against float64."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openfastervit.kernels import unavailable
from openfastervit.kernels.window_attention import window_attention, window_attention_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOUNDS = {torch.float32: 3e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
"""Of the error, relative in norm: a few of the type's steps, which weights and their gradients are rounded to."""

pytestmark = pytest.mark.skipif(unavailable(DEVICE) is not None, reason=str(unavailable(DEVICE)))


class Case(NamedTuple):
    window: tuple[int, int]
    counts: tuple[int, int]
    carrier_size: int
    heads: int
    width: int
    batch: int = 1


FAMILY = {
    "16 carriers of an image": Case((4, 4), (1, 1), 0, 2, 32, batch=2),
    "49 tokens": Case((7, 7), (1, 1), 0, 2, 32),
    "53, fastervit_0": Case((7, 7), (2, 2), 2, 2, 32),
    "53, fastervit_1": Case((7, 7), (1, 2), 2, 1, 40),
    "53, fastervit_2": Case((7, 7), (2, 1), 2, 1, 48),
    "53, fastervit_4": Case((7, 7), (1, 2), 2, 1, 49),
    "53, fastervit_3": Case((7, 7), (1, 2), 2, 2, 64),
    "53, fastervit_5": Case((7, 7), (1, 2), 2, 1, 80),
    "64 carriers at 384": Case((8, 8), (1, 1), 0, 1, 32),
    "68: just above one block": Case((8, 8), (1, 2), 2, 1, 16),
    "100": Case((10, 10), (1, 1), 0, 1, 32),
    "144": Case((12, 12), (1, 1), 0, 1, 49),
    "148": Case((12, 12), (2, 1), 2, 1, 32),
    "windows that are not square": Case((3, 8), (2, 3), 2, 2, 16),
}
family = pytest.mark.parametrize("case", FAMILY.values(), ids=FAMILY.keys())


def inputs(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
    channels = 3 * case.heads * case.width
    height, width = (n * side for n, side in zip(case.counts, case.window, strict=True))
    qkv = torch.randn(case.batch, height, width, channels)
    carriers = None
    if case.carrier_size:
        carriers = torch.randn(case.batch, *(n * case.carrier_size for n in case.counts), channels).to(DEVICE, dtype)
    table = 16 * torch.rand(case.heads, *(2 * side - 1 for side in case.window))
    return qkv.to(DEVICE, dtype), carriers, table.to(DEVICE)


def attended(attention: object, case: Case, qkv: Tensor, carriers: Tensor | None, table: Tensor | None) -> list[Tensor]:
    """Results for tokens and carriers, as many as there are."""
    found = attention(  # type: ignore[operator]
        qkv, carriers, table, num_heads=case.heads, window=case.window, carrier_size=case.carrier_size
    )
    return [part for part in found if part is not None]


def with_gradients(
    attention: object, case: Case, given: list[Tensor | None], grads: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in given]
    results = attended(attention, case, *leaves)
    wanted = [x for x in leaves if x is not None]
    found = torch.autograd.grad(results, wanted, [g.to(r.dtype) for g, r in zip(grads, results, strict=True)])
    return [result.detach() for result in results], list(found)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def doubled(given: list[Tensor | None]) -> list[Tensor | None]:
    return [None if x is None else x.double() for x in given]


@family
@pytest.mark.parametrize("dtype", BOUNDS)
def test_results_and_gradients(case: Case, dtype: torch.dtype) -> None:
    given: list[Tensor | None] = list(inputs(case, dtype))
    results = attended(window_attention_reference, case, *doubled(given))
    grads = [torch.randn_like(result).to(dtype) for result in results]
    expected = with_gradients(window_attention_reference, case, doubled(given), grads)
    found = with_gradients(window_attention, case, given, grads)
    for ours, theirs in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        assert ours.shape == theirs.shape
        assert error(ours, theirs) < BOUNDS[dtype]
    assert all(result.dtype == dtype for result in found[0])


def test_the_reference_is_attention() -> None:
    """Of one window and one head, against the formula written out over its tokens."""
    case = Case((2, 3), (1, 1), 1, 1, 4)
    qkv, carriers, table = (x.double() for x in inputs(case, torch.float32) if x is not None)
    found, of_carriers = window_attention_reference(qkv, carriers, table, num_heads=1, window=(2, 3), carrier_size=1)
    tokens = [carriers[0, 0, 0], *(qkv[0, i, j] for i in range(2) for j in range(3))]
    places = [None, *((i, j) for i in range(2) for j in range(3))]
    for a, query in enumerate(tokens):
        logits = []
        for b, key in enumerate(tokens):
            bias = 0.0
            if places[a] is not None and places[b] is not None:
                bias = table[0, places[a][0] - places[b][0] + 1, places[a][1] - places[b][1] + 2]
            logits.append(query[:4] @ key[4:8] / 4**0.5 + bias)
        weights = torch.stack([torch.as_tensor(logit) for logit in logits]).softmax(0)
        expected = sum(weight * token[8:] for weight, token in zip(weights, tokens, strict=True))
        result = of_carriers[0, 0, 0] if places[a] is None else found[(0, *places[a])]  # type: ignore[index]
        torch.testing.assert_close(result, expected)


@settings(max_examples=12)
@given(
    window=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    counts=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    carrier_size=st.integers(0, 3),
    heads=st.integers(1, 3),
    width=st.integers(1, 40),
    biased=st.booleans(),
)
def test_any_shape(
    window: tuple[int, int], counts: tuple[int, int], carrier_size: int, heads: int, width: int, biased: bool
) -> None:
    case = Case(window, counts, carrier_size, heads, width)
    qkv, carriers, table = inputs(case, torch.float32)
    given: list[Tensor | None] = [qkv, carriers, table if biased else None]
    results = attended(window_attention_reference, case, *doubled(given))
    grads = [torch.randn_like(result).float() for result in results]
    expected = with_gradients(window_attention_reference, case, doubled(given), grads)
    found = with_gradients(window_attention, case, given, grads)
    scale = max(float(theirs.norm()) for theirs in expected[1])
    for ours, theirs in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        # Where a window is one token its weights are 1 and some gradients 0: they are compared with the largest one.
        assert float((ours.double() - theirs).norm()) < 1e-5 * max(scale, float(theirs.norm()))


def test_memory_of_any_order() -> None:
    """Of a map that is part of a larger one, carriers in a tensor transposed, and gradients that are expanded."""
    case = FAMILY["53, fastervit_0"]
    qkv, carriers, table = inputs(case, torch.float32)
    assert carriers is not None
    expected = attended(window_attention, case, qkv, carriers, table)
    wide = torch.full((1, 16, 20, qkv.shape[3] + 5), float("nan"), device=DEVICE)
    wide[:, 1:15, 2:16, :-5] = qkv
    turned = carriers.transpose(1, 2).contiguous().transpose(1, 2)
    first = wide[:, 1:15, 2:16, :-5].requires_grad_()
    found = attended(window_attention, case, first, turned, table)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    (ours,) = torch.autograd.grad(sum(part.sum() for part in found), first)
    qkv.requires_grad_()
    again = attended(window_attention, case, qkv, carriers, table)
    (theirs,) = torch.autograd.grad(sum(part.sum() for part in again), qkv)
    assert torch.equal(ours, theirs)


def test_many_windows_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program takes several windows where there are many; the last one fewer."""
    from openfastervit.kernels import window_attention_kernels

    case = Case((3, 3), (3, 3), 1, 1, 16, batch=2)
    given: list[Tensor | None] = list(inputs(case, torch.float32))
    grads = [torch.randn_like(result) for result in attended(window_attention_reference, case, *given)]
    expected = with_gradients(window_attention, case, given, grads)
    monkeypatch.setattr(window_attention_kernels, "_FORWARD_PROGRAMS", 4)
    monkeypatch.setattr(window_attention_kernels, "_BACKWARD_PROGRAMS", 5)
    found = with_gradients(window_attention, case, given, grads)
    for ours, theirs in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_an_operation_of_torch() -> None:
    """Shapes without data, gradients by finite differences of the reference, tracing: torch's own checks."""
    from openfastervit.kernels.window_attention import _operation

    case = Case((2, 2), (2, 1), 1, 2, 16)
    qkv, carriers, table = inputs(case, torch.float32)
    assert carriers is not None
    arguments = (qkv.requires_grad_(), carriers.requires_grad_(), table.requires_grad_(), [2, 2, 2, 1], 0.25)
    torch.library.opcheck(_operation, arguments)
    torch.library.opcheck(_operation, (qkv, None, None, [2, 2, 2, 0], 0.25))


def test_large_logits() -> None:
    """Softmax is in float32, and shifted: logits of thousands are neither infinity nor NaN."""
    case = FAMILY["100"]
    qkv, carriers, table = inputs(case, torch.float16)
    found = attended(window_attention, case, 30 * qkv, carriers, 100 * table)
    expected = attended(window_attention_reference, case, 30 * qkv.double(), carriers, 100 * table.double())
    assert found[0].isfinite().all()
    assert error(found[0], expected[0]) < 1e-2


def test_equal_to_scaled_dot_product_attention() -> None:
    case = Case((7, 7), (1, 1), 0, 2, 32, batch=2)
    qkv, _, _ = inputs(case, torch.float32)
    q, k, v = qkv.flatten(1, 2).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 7, 7, 64)
    torch.testing.assert_close(attended(window_attention, case, qkv, None, None)[0], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(1, 4, 4, 96, dtype=torch.float64)}, "float64"),
        ({"qkv": torch.zeros(1, 4, 4, 97)}, r"\[1, 4, 4, 97\]"),
        ({"qkv": torch.zeros(1, 5, 4, 96)}, "5 x 4"),
        ({"carriers": torch.zeros(1, 3, 2, 96)}, r"\[1, 3, 2, 96\]"),
        ({"carriers": None}, "carrier_size=1"),
        ({"table": torch.zeros(1, 3, 2)}, r"\[1, 3, 2\]"),
        ({"carrier_size": 0}, "carrier_size=0"),
    ],
)
def test_what_does_not_go_together_is_named(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {
        "qkv": torch.zeros(1, 4, 4, 96),
        "carriers": torch.zeros(1, 2, 2, 96),
        "table": torch.zeros(1, 3, 3),
        "num_heads": 1,
        "window": (2, 2),
        "carrier_size": 1,
    }
    with pytest.raises(ValueError, match=message):
        window_attention(**{**given, **change})  # type: ignore[arg-type]
