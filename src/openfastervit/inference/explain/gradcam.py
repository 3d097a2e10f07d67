"""Grad-CAM (arXiv 1610.02391): where on a stage's map the evidence for a class lies.

    map = ReLU(sum over channels k of  w_k * A_k),    w_k = mean over cells of  d logit / d A_k

for the output ``A`` of a stage, ``(B, C, H, W)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.inference.explain.subject import Mode, check_model, over_image


@dataclass(frozen=True)
class GradCam:
    """Where the evidence for a class lies, for a batch of images."""

    name: str
    """The stage, as in ``model.get_submodule(name)``."""
    maps: Tensor
    """``(B, H, W)``: what each cell adds to the class's logit, to first order; 0 where it adds nothing or takes away.

    A map may be 0 everywhere: then nothing on it speaks for the class.
    """
    classes: tuple[int, ...]
    """Of each image the class, its place in the logits."""
    probabilities: Tensor
    """``(B, num_classes)``: what the network makes of the images."""
    stride: int
    """Height and width of a cell, in pixels of the image."""
    image_size: tuple[int, int]
    """Height and width of the images, in pixels."""

    def over_image(self, mode: Mode = "bilinear") -> Tensor:
        """The maps in pixels, for display: ``(B, image height, image width)``, values as in ``maps``."""
        return over_image(self.maps, self.stride, self.image_size, mode)


def grad_cam(
    model: nn.Module, images: Tensor, *, classes: int | Sequence[int] | None = None, stage: int = -1
) -> GradCam:
    """Grad-CAM of a class on a stage's map. The model is left as it was, parameters' gradients included.

    Args:
        model: A ``FasterViT`` with a classifier, in evaluation mode. Frozen parameters are no hindrance.
        images: ``(B, in_chans, H, W)``, prepared as for a prediction, of any height and width.
        classes: Place of the class in the logits: one for all images, or one each; by default each image's likeliest.
        stage: Whose map, from 0 to 3; -1 is the last. Earlier maps are finer, and say less of the class.

    Returns:
        Maps and probabilities in float32.

    Raises:
        TypeError: If the model is not a FasterViT.
        ValueError: If it is in training mode or has no classifier, or there is no such class or stage.
    """
    model = check_model(model)
    stages = len(model.stages)
    if not -stages <= stage < stages:
        raise ValueError(f"stage={stage} is none of the network's; choose from 0 to {stages - 1}")
    if model.num_classes < 1:
        raise ValueError("the network has no classifier (num_classes=0), hence no class to look for")
    stage %= stages
    chosen = _check_classes(classes, len(images), model.num_classes)
    # Tensors of inference mode cannot be differentiated; a caller may be in it, or the images may come from it.
    with torch.inference_mode(False):
        if images.is_inference():
            images = images.clone()
        with torch.no_grad():
            activation = model.stages[: stage + 1](model.stem(images))
        # The graph begins here: what comes before needs no gradient, and parameters need not have one.
        activation = activation.detach().requires_grad_()
        with torch.enable_grad():
            logits = model.forward_head(model.norm(model.stages[stage + 1 :](activation)))
            if chosen is None:
                chosen = logits.argmax(dim=1).tolist()
            places = torch.tensor(chosen, device=logits.device)[:, None]
            (gradient,) = torch.autograd.grad(logits.gather(1, places).sum(), activation)
    weights = gradient.float().mean(dim=(2, 3), keepdim=True)
    return GradCam(
        name=f"stages.{stage}",
        maps=F.relu((weights * activation.detach().float()).sum(dim=1)),
        classes=tuple(chosen),
        probabilities=logits.detach().float().softmax(dim=1),
        stride=model.feature_info[stage]["reduction"],
        image_size=(images.shape[2], images.shape[3]),
    )


def _check_classes(classes: int | Sequence[int] | None, images: int, num_classes: int) -> list[int] | None:
    """One class an image, or None for the likeliest."""
    if classes is None:
        return None
    chosen = [classes] * images if isinstance(classes, int) else list(classes)
    if len(chosen) != images:
        raise ValueError(f"classes names {len(chosen)} for {images} images; give one for all, or one each")
    for number in chosen:
        if not 0 <= number < num_classes:
            raise ValueError(f"classes={number} is none of the network's; choose from 0 to {num_classes - 1}")
    return chosen
