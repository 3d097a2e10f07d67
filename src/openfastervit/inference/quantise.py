"""Post-training quantisation to int8, with NNCF.

Ranges come from real images. What the softmax of the quantised network differs from the float one's is then measured on
other real images; where that is too much, the layers that lose most go back to higher precision, one after another,
until it is not.
"""

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from openfastervit.inference.openvino_core import kept_signal_stack, openvino_core

if TYPE_CHECKING:
    import openvino

MAX_LOSS = 0.02
"""Mean distance (total variation) of the class probabilities, quantised from float, that is accepted."""
LEAST_IMAGES = 8
"""Calibration images below which ranges mean nothing."""


def quantise_openvino(model: "openvino.Model", calibration: Tensor, *, max_loss: float = MAX_LOSS) -> "openvino.Model":
    """A float model as one with int8 products and weights.

    Args:
        model: From images to logits; it is not changed.
        calibration: Normalised real images ``(n, C, H, W)``, at least 8; a few hundred are good. Every fourth is kept
            to measure the loss.
        max_loss: Mean total variation distance between the probabilities of both models that is accepted, 0 to 1.

    Raises:
        ValueError: If there are too few images, or no choice of layers keeps the loss within ``max_loss``.
    """
    import nncf

    if len(calibration) < LEAST_IMAGES:
        raise ValueError(f"{len(calibration)} calibration images are too few; give at least {LEAST_IMAGES}, better 300")
    images = calibration.detach().cpu().float().numpy()
    held_out = np.arange(len(images)) % 4 == 3
    ranges, checks = images[~held_out], images[held_out]
    options: dict[str, Any] = {
        "preset": nncf.QuantizationPreset.MIXED,  # what a GELU leaves is far from symmetric
        "fast_bias_correction": False,
        "subset_size": len(ranges),
        # Attention's own products are small: quantising them costs accuracy and no less time.
        "ignored_scope": nncf.IgnoredScope(types=["ScaledDotProductAttention"], validate=False),
    }
    dataset = nncf.Dataset([image[None] for image in ranges])
    truth = _probabilities(model, checks)
    with _quiet(), kept_signal_stack():
        quantised = nncf.quantize(model.clone(), dataset, **options)
    if _loss(quantised, checks, truth) <= max_loss:
        return quantised

    def closeness(compiled: Any, data: Iterable[Any]) -> tuple[float, list[float]]:
        distances = []
        for image, expected in data:
            distances.append(float(_distance(_softmax(compiled(image)[0]), expected)[0]))
        return 1 - float(np.mean(distances)), [1 - distance for distance in distances]

    pairs = [(image[None], expected[None]) for image, expected in zip(checks, truth, strict=True)]
    with _quiet(), kept_signal_stack():
        quantised = nncf.quantize_with_accuracy_control(
            model.clone(),
            dataset,
            nncf.Dataset(pairs, lambda pair: pair[0]),
            closeness,
            max_drop=max_loss,
            **options,
        )
    loss = _loss(quantised, checks, truth)
    if loss > max_loss:
        raise ValueError(f"int8 moves the probabilities by {loss:.3f} on average, more than max_loss={max_loss}")
    return quantised


def _probabilities(model: "openvino.Model", images: Any) -> Any:
    """Class probabilities ``(n, classes)`` of images ``(n, C, H, W)``, one at a time, in float32 arithmetic."""
    import openvino
    import openvino.properties.hint as hint

    compiled = openvino_core().compile_model(model, "CPU", {hint.inference_precision(): openvino.Type.f32})
    return np.concatenate([_softmax(compiled(image[None])[0]) for image in images])


def _softmax(logits: Any) -> Any:
    return torch.from_numpy(logits).softmax(dim=-1).numpy()


def _distance(found: Any, expected: Any) -> Any:
    """Total variation distance of each row: 0 for the same probabilities, 1 for none in common."""
    return np.abs(found - expected).sum(-1) / 2


def _loss(model: "openvino.Model", images: Any, truth: Any) -> float:
    return float(_distance(_probabilities(model, images), truth).mean())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws progress bars and logs each layer: neither is for a user of ours."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
