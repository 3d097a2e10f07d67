"""MESA: its loss, when it begins, and what it needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openfastervit.training import trainer as trainer_module
from openfastervit.training.distillation import mesa_loss
from openfastervit.training.recipe import ClassificationRecipe, make_recipe
from openfastervit.training.run import start
from tests.distributed.launch import RECIPE, write_data


def direct(student: Tensor, teacher: Tensor) -> Tensor:
    """``50 * KL(softmax(t / 3) || softmax(s / 3))`` as it is written, in float64."""
    p, q = (torch.exp(x.double() / 3) / torch.exp(x.double() / 3).sum(1, keepdim=True) for x in (teacher, student))
    return 50 * (p * torch.log(p / q)).sum(1).mean()


@dataclass
class Logits:
    student: Tensor
    teacher: Tensor


@pytest.fixture
def logits() -> Logits:
    generator = torch.Generator().manual_seed(3)
    return Logits(*(4 * torch.randn(7, 5, generator=generator) for _ in range(2)))


def test_the_loss_is_its_formula(logits: Logits) -> None:
    assert mesa_loss(logits.student, logits.teacher).item() == pytest.approx(
        direct(logits.student, logits.teacher).item(), rel=1e-5
    )
    assert mesa_loss(logits.student, logits.student).item() == pytest.approx(0, abs=1e-5)


def test_the_gradient_is_the_formulas_and_the_teachers_none(logits: Logits) -> None:
    student, teacher = logits.student.clone().requires_grad_(), logits.teacher.clone().requires_grad_()
    mesa_loss(student, teacher).backward()
    expected = logits.student.clone().requires_grad_()
    direct(expected, logits.teacher).backward()
    torch.testing.assert_close(student.grad, expected.grad, rtol=1e-4, atol=1e-6)
    assert teacher.grad is None


def test_half_precision_is_computed_in_float32(logits: Logits) -> None:
    found = mesa_loss(logits.student.bfloat16(), logits.teacher.bfloat16())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(direct(logits.student.bfloat16(), logits.teacher.bfloat16()).item(), rel=1e-5)


def test_it_begins_after_a_quarter_of_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 6 epochs the first 2 are without; its weight counts, and it is part of the loss."""
    told: list[tuple[int, dict[str, float]]] = []
    backward = trainer_module.Trainer._backward

    def noting(self: Any, *args: Any) -> dict[str, Tensor]:
        losses = backward(self, *args)
        told.append((self.progress.epoch, {name: float(value) for name, value in losses.items()}))
        return losses

    monkeypatch.setattr(trainer_module.Trainer, "_backward", noting)
    monkeypatch.setattr(trainer_module, "mesa_loss", lambda student, teacher: student.new_tensor(2.5))
    data = write_data(tmp_path / "data", train=8, val=3)
    recipe = {**RECIPE, "data": str(data), "epochs": 6, "batch_size": 8, "mesa": 0.4, "save_steps": None}
    start(make_recipe(recipe, ClassificationRecipe), tmp_path / "run")
    assert [epoch for epoch, _ in told] == list(range(6))
    for epoch, losses in told:
        assert ("mesa" in losses) == (epoch >= 2), epoch
        if "mesa" in losses:
            assert losses["mesa"] == pytest.approx(0.4 * 2.5, rel=1e-6)
            assert losses["loss"] == pytest.approx(losses["mesa"] + losses["cross_entropy"], rel=1e-6)


def test_it_needs_an_average_to_teach() -> None:
    with pytest.raises(ValueError, match=r"mesa=0\.5 needs the weight average that teaches; set ema_decay"):
        make_recipe({"mesa": 0.5}, ClassificationRecipe)
