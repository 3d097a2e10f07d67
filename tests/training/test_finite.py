"""The first update that was no number is found, whatever follows it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openfastervit.training.finite import FiniteCheck

NUMBERS = st.floats(width=32)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=8))
def test_the_first_is_found(updates: list[tuple[float, float]]) -> None:
    check = FiniteCheck()
    wrong = [number for number, pair in enumerate(updates, 1) if not all(map(math.isfinite, pair))]
    for number, (loss, norm) in enumerate(updates, 1):
        check.push(number, torch.tensor(loss), torch.tensor(norm), [f"{number}.jpg"])
        assert (check.found is not None) == any(earlier <= number for earlier in wrong)  # at once, on a CPU
    check.settle()
    if not wrong:
        assert check.found is None
        return
    assert check.found is not None
    assert (check.found.update, check.found.names) == (wrong[0], [f"{wrong[0]}.jpg"])
    assert [str(check.found.loss), str(check.found.norm)] == [str(value) for value in updates[wrong[0] - 1]]


def test_low_precision_is_judged_by_its_own_numbers() -> None:
    check = FiniteCheck()
    check.push(1, torch.tensor(65504.0, dtype=torch.float16), torch.tensor(3e38, dtype=torch.bfloat16), [])
    assert check.found is None
    check.push(2, torch.tensor(1e5).half(), torch.tensor(1.0), ["a"])
    assert check.found is not None
    assert check.found.loss == math.inf


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_verdict_comes_by_the_time_of_saving() -> None:
    check = FiniteCheck()
    for update in range(1, 4):
        loss = torch.full((), math.nan if update == 2 else 1.0, device="cuda")
        check.push(update, loss, torch.ones((), device="cuda"), [str(update)])
    check.settle()
    assert check.found is not None
    assert check.found.update == 2
