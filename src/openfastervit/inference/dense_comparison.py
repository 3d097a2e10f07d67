"""Exported detectors and segmenters beside the networks that they were made of, on the same images."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from openfastervit.inference.dense_file import DenseFile, Size
from openfastervit.inference.engines.engine import MAX_DIFFERENCE, difference
from openfastervit.inference.export import Comparison, ExportError
from openfastervit.models.features import DenseNetwork
from openfastervit.tasks.detection.cascade import CascadeRoIHeads
from openfastervit.tasks.detection.detr import DetrDetector
from openfastervit.tasks.detection.rcnn import RCNN

MAX_PIXELS = 0.1
"""By which corners of a box may differ for it to be the same one."""
MAX_PROBABILITY = 0.005
"""By which its score and the probabilities of its mask may."""
MIN_AGREEMENT = 0.95
"""Share of the detections that must be the same. Where two boxes overlap by just the threshold, or score the same,
the last digit decides which is kept; so it may be less than all."""


class DetectionComparison(NamedTuple):
    """An exported detector beside the plain one, on some images."""

    images: str
    """What they are: "random" or "real"."""
    size: Size
    """Height and width of the file's images."""
    detections: int
    """Of the network, whatever they score."""
    agreement: float
    """Share of the detections, of both, that the other has too."""
    boxes: float
    """Largest difference of such a pair's corners, in pixels."""
    scores: float
    masks: float
    """Largest difference of a probability in their masks; 0 without masks."""


# --- Detectors --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def compare_detections(
    model: DenseNetwork, file: DenseFile, real: Iterable[tuple[Tensor, Size]]
) -> tuple[DetectionComparison, ...]:
    """Run a file, and the network in float32, on the same images. Thresholds for scores play no part.

    Args:
        model: Left as it is.
        file: Its export.
        real: Images as ``fitted`` gives them.

    Raises:
        ExportError: If they differ.
    """
    network = plain_detector(model, file.about.size)
    found = []
    for kind, images in (("random", _noise(file.about.size)), ("real", real)):
        pairs = []
        for pixels, size in images:
            outputs = file(images=pixels, size=torch.tensor(size))
            (expected,) = network([pixels[0, :, : size[0], : size[1]]])
            pairs.append((outputs, expected))
        if pairs:
            found.append(_compared(kind, file.about.size, pairs))
    for one in found:
        _judge_detections(one)
    return tuple(found)


def plain_detector(model: DenseNetwork, size: Size) -> DenseNetwork:
    """A copy that takes images as exported files do: normalised and scaled already, padded to ``size``.

    It gives boxes and masks as they are before torchvision's transform brings them back to the image, and detections
    of any score.
    """
    network = copy.deepcopy(model).eval().float()
    network.transform = _Placing(size)
    if isinstance(network, DetrDetector):
        network.score_threshold = -1.0
        return network
    assert isinstance(network, RCNN)
    heads = network.roi_heads
    for head in [*heads.stages] if isinstance(heads, CascadeRoIHeads) else [heads]:
        head.score_thresh = -1.0
    return network


class _Placing(nn.Module):
    """In the place of a ``GeneralizedRCNNTransform``."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.max_size = max(size)

    def forward(self, images: list[Tensor], targets: None) -> tuple[ImageList, None]:
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        padded = [
            F.pad(image, (0, self.size[1] - image.shape[2], 0, self.size[0] - image.shape[1])) for image in images
        ]
        return ImageList(torch.stack(padded), sizes), None

    def postprocess(self, result: list[dict[str, Tensor]], *sizes: Any) -> list[dict[str, Tensor]]:
        return result


def _noise(size: Size) -> Iterator[tuple[Tensor, Size]]:
    """Images, normalised: one that fills its place, and one that leaves some of it empty."""
    generator = torch.Generator().manual_seed(0)
    for inner in (size, (size[0] - size[0] // 5, size[1] - size[1] // 7)):
        pixels = torch.randn(1, 3, *inner, generator=generator)
        yield F.pad(pixels, (0, size[1] - inner[1], 0, size[0] - inner[0])), inner


def _compared(
    kind: str, size: Size, pairs: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]
) -> DetectionComparison:
    same = total = detections = 0
    worst = {"boxes": 0.0, "scores": 0.0, "masks": 0.0}
    for outputs, expected in pairs:
        rows, columns = matched(outputs, expected)
        same += len(rows)
        total += max(int((outputs["labels"] > 0).sum()), len(expected["labels"]))
        detections += len(expected["labels"])
        for name in worst.keys() & outputs.keys() if len(rows) else ():
            theirs = expected[name][columns].reshape(outputs[name][rows].shape)
            worst[name] = max(worst[name], float((outputs[name][rows] - theirs).abs().max()))
    return DetectionComparison(kind, size, detections, same / total if total else 1.0, **worst)


def matched(outputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[list[int], list[int]]:
    """Which detections of a file are which of the network's, each at most once: the best first, the nearest box."""
    boxes = torch.cdist(outputs["boxes"], expected["boxes"], p=torch.inf)
    scores = (outputs["scores"][:, None] - expected["scores"]).abs()
    alike = (outputs["labels"][:, None] == expected["labels"]) & (boxes <= MAX_PIXELS) & (scores <= MAX_PROBABILITY)
    distance = boxes.masked_fill(~alike, torch.inf)
    rows, columns = [], []
    for column in range(distance.shape[1]):
        row = int(distance[:, column].argmin())
        if distance[row, column] < torch.inf:
            rows.append(row)
            columns.append(column)
            distance[row] = torch.inf
    return rows, columns


def _judge_detections(found: DetectionComparison) -> None:
    if found.agreement >= MIN_AGREEMENT and found.masks <= MAX_PROBABILITY:
        return
    what = f"only {found.agreement:.1%} of its detections are the network's"
    if found.agreement >= MIN_AGREEMENT:
        what = f"its masks differ from the network's by {found.masks:.2g}, more than {MAX_PROBABILITY:g}"
    raise ExportError(
        f"the exported detector differs from the network: {what}, on {found.images} images of {found.size[0]} x "
        f"{found.size[1]}; it is not written; use its checkpoint"
    )


# --- Segmenters -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def compare_scores(model: DenseNetwork, file: DenseFile, real: Iterable[tuple[Tensor, Size]]) -> tuple[Comparison, ...]:
    """Run a file, and the network in float32, on the same images.

    ``Comparison.agreement`` is the part of the pixels whose best class is the same.

    Args:
        model: Left as it is.
        file: Its export.
        real: Images as ``fitted`` gives them.

    Raises:
        ExportError: If they differ.
    """
    network = copy.deepcopy(model).eval().float()
    size = file.about.size
    noise = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    found = [_compared_scores("random", network, file, [noise[:1]]), _compared_scores("random", network, file, [noise])]
    photographs = [pixels for pixels, _ in real]
    if photographs:
        found.append(_compared_scores("real", network, file, photographs))
    most = MAX_DIFFERENCE[file.about.precision]
    worst = max(found, key=lambda one: (one.difference != one.difference, one.difference))
    if not worst.difference <= most:  # also where it is not a number
        mend = "use its checkpoint" if file.about.precision == "fp32" else "choose fp32"
        raise ExportError(
            f"the exported segmenter's scores differ from the network's by {worst.difference:.2g}, more than {most:g}, "
            f"on {worst.images} images of {size[0]} x {size[1]}; it is not written; {mend}"
        )
    return tuple(found)


def _compared_scores(kind: str, network: nn.Module, file: DenseFile, batches: Sequence[Tensor]) -> Comparison:
    apart, agreement = 0.0, []
    for images in batches:
        outputs, expected = file(images=images)["logits"], network(images)
        if outputs.shape != expected.shape:
            raise ExportError(f"it gives {list(outputs.shape)} for {list(expected.shape)}; it is not written")
        here = difference(outputs.flatten(1), expected.flatten(1))
        apart = here if here != here else max(apart, here)
        agreement.append(float((outputs.argmax(1) == expected.argmax(1)).double().mean()))
    return Comparison(kind, len(batches[0]), file.about.size, apart, sum(agreement) / len(agreement))


__all__ = [
    "MAX_PIXELS",
    "MAX_PROBABILITY",
    "MIN_AGREEMENT",
    "DetectionComparison",
    "compare_detections",
    "compare_scores",
    "matched",
    "plain_detector",
]
