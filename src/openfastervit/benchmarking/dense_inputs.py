"""What detectors and segmenters are measured on: the same noise, objects and boxes for every network, made anew.

What a detector's heads have to do depends on the image: on how many boxes are proposed, on how many of them are
objects, on how many are found. So these numbers are fixed here, at what torchvision allows at most.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

OBJECTS = 8
"""On an image: about as many as COCO's have."""
NEAR = 0.7
"""IoU that a box near an object has at least: enough for the last stage of a cascade."""
FAR = 0.4
"""IoU that the others have at most, with any object: too little for the first stage."""
NEAR_SHARE = 4
"""One in so many boxes is near an object: as many as torchvision samples at most."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Objects:
    """What is on an image of ``H x W`` pixels."""

    boxes: Tensor
    """``(8, 4)``, two corners in pixels."""
    labels: Tensor
    """``(8,)``, from 1."""
    masks: Tensor
    """``(8, H, W)`` of 0 and 1: ellipses."""

    def target(self, *, masks: bool) -> dict[str, Tensor]:
        """As torchvision's detectors take them."""
        target = {"boxes": self.boxes, "labels": self.labels}
        return {**target, "masks": self.masks} if masks else target


def noise(size: Size, generator: torch.Generator) -> Tensor:
    """An image ``(3, H, W)`` from 0 to 1."""
    return torch.rand(3, *size, generator=generator)


def objects(size: Size, num_classes: int) -> Objects:
    """Eight objects in two rows, of a fifth to nine tenths of the room that each has."""
    height, width = size
    room_y, room_x = height / 2, width / (OBJECTS // 2)
    boxes = []
    for number in range(OBJECTS):
        row, column = divmod(number, OBJECTS // 2)
        share = 0.2 + 0.7 * number / (OBJECTS - 1)
        y, x = (row + 0.5) * room_y, (column + 0.5) * room_x
        half_y, half_x = share * room_y / 2, share * room_x / 2
        boxes.append([x - half_x, y - half_y, x + half_x, y + half_y])
    corners = torch.tensor(boxes)
    return Objects(
        corners, torch.arange(OBJECTS) % num_classes + 1, torch.stack([_ellipse(box, size) for box in corners])
    )


def proposals(size: Size, count: int, generator: torch.Generator) -> Tensor:
    """Boxes ``(count, 4)`` as a region proposal network might give them: some near objects, the others far from all.

    Those near an object are so for each stage of a cascade, and those far from all for none, so that every network
    finds as many of either.
    """
    found = objects(size, 1).boxes
    near = count // NEAR_SHARE
    shaken = found[torch.arange(near) % OBJECTS]
    sides = (shaken[:, 2:] - shaken[:, :2]).repeat(1, 2)
    shaken = shaken + sides * (0.04 * (2 * torch.rand(near, 4, generator=generator) - 1))
    rest = torch.empty(0, 4)
    while len(rest) < count - near:
        drawn = _anywhere(size, count, generator)
        rest = torch.cat([rest, drawn[box_iou(drawn, found).amax(1) <= FAR]])
    return torch.cat([shaken, rest[: count - near]])


def label_map(size: Size, num_classes: int) -> Tensor:
    """Labels ``(H, W)``: the objects, each of a class of its own where there are so many, before a background 0."""
    found = objects(size, num_classes)
    labels = torch.zeros(size, dtype=torch.int64)
    for label, mask in zip(found.labels.tolist(), found.masks.bool(), strict=True):
        labels[mask] = label % num_classes
    return labels


def _anywhere(size: Size, count: int, generator: torch.Generator) -> Tensor:
    """Boxes ``(count, 4)`` of all sizes within the image: small ones as often as large ones."""
    height, width = size
    largest = min(height, width) / 2
    sides = largest * 25 ** -torch.rand(count, 2, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    return torch.cat([corner, corner + sides], 1)


def _ellipse(box: Tensor, size: Size) -> Tensor:
    x1, y1, x2, y2 = box.tolist()
    y, x = (torch.arange(side) + 0.5 for side in size)
    distance = ((y[:, None] - (y1 + y2) / 2) / (y2 - y1) * 2) ** 2 + ((x - (x1 + x2) / 2) / (x2 - x1) * 2) ** 2
    return (distance <= 1).to(torch.uint8)
