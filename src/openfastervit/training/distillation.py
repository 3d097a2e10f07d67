"""MESA: the average of a network's own weights teaches it (Du et al., arXiv 2205.14083)."""

import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 3.0
FACTOR = 50.0


def mesa_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``50 * KL(softmax(teacher / 3) || softmax(student / 3))``, mean over the batch; no gradient for the teacher.

    Args:
        student: Logits ``(B, K)``.
        teacher: Logits ``(B, K)`` of the averaged weights, for the same images.
    """
    learned = F.log_softmax(student.float() / TEMPERATURE, dim=1)
    taught = F.log_softmax(teacher.detach().float() / TEMPERATURE, dim=1)
    return FACTOR * F.kl_div(learned, taught, reduction="batchmean", log_target=True)
