"""What a network looks at: attention of carriers and windows, and the evidence for a class, as maps over the image."""

from openfastervit.inference.explain.carriers import CarrierAttention, carrier_attention, pooling_footprint
from openfastervit.inference.explain.explanation import Explanation, explain
from openfastervit.inference.explain.gradcam import GradCam, grad_cam
from openfastervit.inference.explain.subject import NothingToShowError
from openfastervit.inference.explain.windows import WindowAttention, window_attention

__all__ = [
    "CarrierAttention",
    "Explanation",
    "GradCam",
    "NothingToShowError",
    "WindowAttention",
    "carrier_attention",
    "explain",
    "grad_cam",
    "pooling_footprint",
    "window_attention",
]
