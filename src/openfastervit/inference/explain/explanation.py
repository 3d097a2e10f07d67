"""All there is to look at in one image, together."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from openfastervit.inference.explain.carriers import CarrierAttention, carrier_attention
from openfastervit.inference.explain.gradcam import GradCam, grad_cam
from openfastervit.inference.explain.subject import NothingToShowError
from openfastervit.inference.explain.windows import WindowAttention, window_attention


@dataclass(frozen=True)
class Explanation:
    """What a network looks at in one image. Maps are those of a batch of one."""

    pixels: Tensor
    """``(C, H, W)`` in uint8: the image as the network saw it, RGB or grayscale."""
    classes: tuple[str, ...]
    """Names, in the order of the logits."""
    cam: GradCam
    """Of one class, with the probabilities of all."""
    carriers: tuple[CarrierAttention, ...]
    """A block; none where there is nothing to show."""
    no_carriers: str
    """Why there is nothing to show."""
    windows: tuple[WindowAttention, ...]
    """A block; none where there is nothing to show."""
    no_windows: str
    """Why there is nothing to show."""

    @property
    def target(self) -> int:
        """The class that was looked for, its place in ``classes``."""
        return self.cam.classes[0]


def explain(
    model: nn.Module,
    image: Tensor,
    pixels: Tensor,
    classes: Sequence[str],
    *,
    target: int | None = None,
    stage: int = -1,
) -> Explanation:
    """Look at one image in all ways. The model is left as it was.

    Args:
        model: A ``FasterViT`` with a classifier, in evaluation mode.
        image: ``(1, in_chans, H, W)``, prepared as for a prediction.
        pixels: ``(in_chans, H, W)`` in uint8: the same, as a picture.
        classes: Names, in the order of the logits.
        target: Place of the class to look for; by default the likeliest.
        stage: Whose map Grad-CAM is on, from 0 to 3; -1 is the last.

    Raises:
        TypeError: If the model is not a FasterViT.
        ValueError: If it is in training mode or has no classifier, if there is no such class or stage, or the
            arguments do not belong together.
    """
    if len(image) != 1 or pixels.shape != image.shape[1:]:
        raise ValueError(
            f"image is {list(image.shape)} and pixels {list(pixels.shape)}; give one image, (1, C, H, W) and (C, H, W)"
        )
    cam = grad_cam(model, image, classes=target, stage=stage)
    if len(classes) != cam.probabilities.shape[1]:
        raise ValueError(f"classes has {len(classes)} names for {cam.probabilities.shape[1]} logits; give one each")
    carriers: tuple[CarrierAttention, ...] = ()
    windows: tuple[WindowAttention, ...] = ()
    no_carriers = no_windows = ""
    try:
        carriers = carrier_attention(model, image)
    except NothingToShowError as error:
        no_carriers = str(error)
    try:
        windows = window_attention(model, image)
    except NothingToShowError as error:
        no_windows = str(error)
    return Explanation(pixels, tuple(classes), cam, carriers, no_carriers, windows, no_windows)
