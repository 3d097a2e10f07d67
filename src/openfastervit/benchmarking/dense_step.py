"""What a row of detection or segmentation measures: a step of training, or inference, of a network in eager torch.

Weights are random, and what random weights propose and find is arbitrary: it would be another amount of work for each
backbone. So an R-CNN's boxes are given (``_give_boxes``), and every network's heads do the same work.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from openfastervit.benchmarking import dense_inputs
from openfastervit.benchmarking.complexity import count_parameters, multiply_adds
from openfastervit.benchmarking.status import UnsupportedError, is_out_of_memory
from openfastervit.benchmarking.subject import Called, Machine
from openfastervit.models.features import Backbone, DenseNetwork, create_backbone
from openfastervit.tasks.detection.networks import HEADS, DetectorPlan, create_detector
from openfastervit.tasks.segmentation.task import SegmenterPlan, create_segmenter

if TYPE_CHECKING:
    from openfastervit.benchmarking.dense import DenseCase

CLASSES = {"detection": 80, "segmentation": 150}
"""COCO's, ADE20K's."""
STRIDES = (4, 8, 16, 32)
"""Of the maps that a segmenter takes."""
SEED = 0
FOUND = 0.5
"""The probability of the class that all boxes are given in inference. That of each other one is below 0.05."""


@contextlib.contextmanager
def open_step(case: "DenseCase", machine: Machine) -> Iterator[Called]:
    """A case's network, and one call of it: a step of training, or inference.

    Raises:
        UnsupportedError: If the backbone cannot be built for that size, or the head does not take it.
    """
    torch.manual_seed(SEED)
    device = torch.device(machine.device)
    try:
        network = _network(case)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UnsupportedError(str(error) or type(error).__name__) from error
    facts = _Facts(network)
    network.to(device).train(case.mode == "training")
    if isinstance(network, GeneralizedRCNN):
        _give_boxes(network, case.size)
    inputs = tree_map_only(Tensor, lambda value: value.to(device), _inputs(case))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16")
    step = (_training if case.mode == "training" else _inference)(network, inputs, autocast)

    def call() -> None:
        facts.begin()
        found = step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        facts.end(found)

    yield Called(call, facts.told)


def _network(case: "DenseCase") -> DenseNetwork:
    strides = HEADS[cast(Any, case.head)].strides if case.task == "detection" else STRIDES
    backbone = create_backbone(
        case.architecture.partition(".")[0], options=case.options, strides=strides, img_size=case.size
    )
    classes = CLASSES[case.task]
    if case.task == "segmentation":
        return create_segmenter(
            SegmenterPlan(
                model=case.architecture,
                head=cast(Any, case.head),
                num_classes=classes,
                head_options=case.head_options,
            ),
            backbone,
        )
    network = create_detector(
        DetectorPlan(
            model=case.architecture,
            head=cast(Any, case.head),
            num_classes=classes,
            # The short and the long side of what it is given: it scales nothing.
            min_sizes=[min(case.size)],
            max_size=max(case.size),
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            head_options=case.head_options,
        ),
        backbone,
    )
    if case.precision != "fp32" and case.mode == "inference" and not isinstance(network, GeneralizedRCNN):
        raise UnsupportedError(f"{case.head} predicts in float32, whatever is asked for; leave {case.precision} out")
    return network


def _inputs(case: "DenseCase") -> tuple[Any, ...]:
    """What the network is called with, on the CPU."""
    generator = torch.Generator().manual_seed(SEED)
    classes = CLASSES[case.task]
    images = [dense_inputs.noise(case.size, generator) for _ in range(case.batch_size)]
    training = case.mode == "training"
    if case.task == "segmentation":
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        batch = (torch.stack(images) - mean) / std
        return (batch, *([dense_inputs.label_map(case.size, classes).repeat(len(batch), 1, 1)] if training else []))
    if not training:
        return (images,)
    masks = HEADS[cast(Any, case.head)].masks
    return images, [dense_inputs.objects(case.size, classes).target(masks=masks) for _ in images]


def _training(
    network: nn.Module, inputs: Sequence[Any], autocast: contextlib.AbstractContextManager[Any]
) -> Callable[[], None]:
    """A step of AdamW. Its rate is 0: all of its work is done, and every step is like the first one."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.05)

    def step() -> None:
        with autocast:
            loss = sum(network(*inputs).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # here, so that no gradients lie about while others have their turn

    return step


def _inference(
    network: nn.Module, inputs: Sequence[Any], autocast: contextlib.AbstractContextManager[Any]
) -> Callable[[], Any]:
    def step() -> Any:
        with torch.inference_mode(), autocast:
            return network(*inputs)

    return step


def _give_boxes(network: GeneralizedRCNN, size: tuple[int, int]) -> None:
    """Let the heads of an R-CNN do the same work on every backbone.

    Its region proposal network does all of its own work; then as many boxes as it may propose at most, 2000 in training
    and 1000 in inference, are put in the place of those that it proposed. Stages do not move boxes, for their weights
    of regression start at 0. In inference all boxes are of one class, as much as they can be of it: all of them come to
    the suppression of doubles, and as many as may be kept have masks.
    """
    count = int(network.rpn.post_nms_top_n())
    boxes = dense_inputs.proposals(size, count, torch.Generator().manual_seed(SEED))
    boxes = boxes.to(next(network.parameters()).device)

    def give(module: nn.Module, args: Any, outputs: tuple[list[Tensor], Any]) -> tuple[list[Tensor], Any]:
        proposed, losses = outputs
        return [boxes.to(each.dtype) for each in proposed], losses

    network.rpn.register_forward_hook(give)
    for predictor in network.roi_heads.modules():
        if not isinstance(predictor, FastRCNNPredictor):
            continue
        nn.init.zeros_(predictor.bbox_pred.weight)
        nn.init.zeros_(predictor.bbox_pred.bias)
        if not network.training:
            others = predictor.cls_score.out_features - 2
            shares = torch.tensor([0.9 - FOUND, FOUND, *[0.1 / max(others, 1)] * others])
            nn.init.zeros_(predictor.cls_score.weight)
            with torch.no_grad():
                predictor.cls_score.bias.copy_(shares.log())


class _Facts:
    """What reached the parts of a network in its last call.

    Args:
        network: To be watched.
    """

    def __init__(self, network: DenseNetwork) -> None:
        self._network = network
        self._seen: Counter[str] = Counter()
        self._sizes: list[tuple[int, int]] = []
        network.feature_backbone.register_forward_pre_hook(_noting_size(self._sizes))
        if isinstance(network, GeneralizedRCNN):
            heads: Any = network.roi_heads
            for stage in getattr(heads, "stages", [heads]):
                stage.box_head.register_forward_pre_hook(_counting(self._seen, "box_head_boxes"))
            if heads.has_mask():
                heads.mask_head.register_forward_pre_hook(_counting(self._seen, "mask_head_boxes"))

    def begin(self) -> None:
        """A call begins."""
        self._seen.clear()
        self._sizes.clear()

    def end(self, found: Any) -> None:
        """A call is over; what it gave, if that is detections, is counted."""
        if isinstance(found, list):
            self._seen["detections"] = sum(len(each["boxes"]) for each in found)

    def told(self) -> Mapping[str, Any]:
        """Of the last call, and of the network; by the names of columns."""
        backbone = self._network.feature_backbone
        height, width = self._sizes[-1]
        count = _multiply_adds(backbone, height, width)
        return {
            "parameters_m": count_parameters(self._network) / 1e6,
            "backbone_parameters_m": count_parameters(backbone) / 1e6,
            "backbone_multiply_adds_g": None if count is None else count / 1e9,
            "backbone_height": height,
            "backbone_width": width,
            **self._seen,
        }


def _noting_size(sizes: list[tuple[int, int]]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that notes the height and width of the images that come."""

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        height, width = args[0].shape[-2:]
        sizes.append((height, width))

    return note


def _counting(seen: Counter[str], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that counts the boxes that come."""

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[name] += len(args[0])

    return count


def _multiply_adds(backbone: Backbone, height: int, width: int) -> int | None:
    """Of one image; None where a network computes what has no values on the meta device."""
    try:
        return multiply_adds(backbone, height, width)
    except (NotImplementedError, RuntimeError):
        return None
