"""What is measured of detection and segmentation: a backbone in a head, at work or learning; and the row of it."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from openfastervit.benchmarking.status import OK
from openfastervit.benchmarking.subject import Called, Machine, Measured
from openfastervit.benchmarking.timing import percentile
from openfastervit.tasks.detection.settings import DetectionHead
from openfastervit.tasks.segmentation.settings import SegmentationHead

Task = Literal["detection", "segmentation"]
Mode = Literal["inference", "training"]
DensePrecision = Literal["fp32", "bf16"]
MODES: tuple[Mode, ...] = get_args(Mode)
DENSE_PRECISIONS: tuple[DensePrecision, ...] = get_args(DensePrecision)
"""bfloat16 is autocast: weights stay in float32."""
TASK_HEADS: dict[Task, tuple[str, ...]] = {
    "detection": get_args(DetectionHead),
    "segmentation": get_args(SegmentationHead),
}
"""The first one of each is the one that is measured where none is named."""
SIZES: dict[Task, tuple[int, int]] = {"detection": (800, 1333), "segmentation": (512, 512)}
"""Height and width that the literature measures at."""
BATCH_SIZES: dict[Task, int] = {"detection": 1, "segmentation": 2}
"""Of one image UPerNet cannot learn: batch norm learns nothing from the one cell that it pools it to."""

DenseKey = tuple[str, str, str, str, str, int, int, int]


@dataclass(frozen=True)
class DenseCase:
    """One thing to measure."""

    task: Task
    backbone: str
    """As asked for."""
    architecture: str
    """Its name here, or timm's."""
    peer: bool
    """Whether it is timm's."""
    head: str
    mode: Mode
    precision: DensePrecision
    batch_size: int
    height: int
    width: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Of the backbone's constructor."""
    head_options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.height, self.width

    @property
    def key(self) -> DenseKey:
        """What no other case has."""
        return (
            *(self.task, self.backbone, self.head, self.mode, self.precision),
            *(self.batch_size, self.height, self.width),
        )

    @property
    def kin(self) -> DenseKey:
        """What is compared with one another has this in common: all but the backbone."""
        return replace(self, backbone="").key

    @property
    def counted(self) -> bool:
        """Torch takes all the memory that is taken."""
        return True

    def unavailable(self) -> str | None:
        """Torch is there; what else a head needs, it says when it is built."""
        return None

    def open(self, machine: Machine) -> AbstractContextManager[Called]:
        """The network, and a step of training or inference, in this process."""
        from openfastervit.benchmarking.dense_step import open_step  # imports detectors: not in every command

        return open_step(self, machine)

    def unmeasured(self, status: str, *, threads: int | None = None) -> "DenseRow":
        """The row without figures."""
        return DenseRow(
            task=self.task,
            backbone=self.backbone,
            head=self.head,
            mode=self.mode,
            precision=self.precision,
            batch_size=self.batch_size,
            height=self.height,
            width=self.width,
            status=status,
            threads=threads,
            peer=self.peer,
            architecture=self.architecture,
        )

    def measured(self, found: Measured, status: str) -> "DenseRow":
        """The row with its figures so far."""
        return replace(
            self.unmeasured(status, threads=found.threads),
            images_per_second=found.images_per_second,
            images_per_second_q1=found.images_per_second_q1,
            images_per_second_q3=found.images_per_second_q3,
            seconds_p50=percentile(found.seconds, 50),
            peak_memory_mb=found.peak_memory_mb,
            memory_before_mb=found.memory_before_mb,
            memory_kind=found.memory_kind,
            repeats=found.repeats,
            calls=len(found.seconds),
            block=found.block,
            **found.facts,
        )

    def __str__(self) -> str:
        return (
            f"{self.backbone} in {self.head}, {self.mode}, {self.precision} {self.batch_size} x {self.height} x "
            f"{self.width}"
        )


@dataclass(frozen=True, kw_only=True)
class DenseRow:
    """A line of ``results.csv``: medians over the repeats. None where nothing was measured or counted."""

    task: str
    backbone: str
    head: str
    mode: str
    """``inference``, or ``training``: losses, backward pass, and a step of AdamW."""
    precision: str
    batch_size: int
    height: int
    width: int
    images_per_second: float | None = None
    images_per_second_q1: float | None = None
    images_per_second_q3: float | None = None
    seconds_p50: float | None = None
    """Of a call, over all calls of all repeats."""
    peak_memory_mb: float | None = None
    """In 10^6 bytes."""
    parameters_m: float | None = None
    """Millions, of backbone and head."""
    backbone_parameters_m: float | None = None
    backbone_multiply_adds_g: float | None = None
    """10^9, of the backbone for one image of ``backbone_height x backbone_width``."""
    status: str
    box_head_boxes: int | None = None
    """Boxes that came to the box heads in a call, all stages together."""
    mask_head_boxes: int | None = None
    """Boxes that came to the mask head in a call."""
    detections: int | None = None
    """That a call gave."""
    backbone_height: int | None = None
    """Of what came to the backbone: padded to multiples of 32."""
    backbone_width: int | None = None
    repeats: int = 0
    calls: int = 0
    """Of all repeats."""
    threads: int | None = None
    memory_kind: str = ""
    """What ``peak_memory_mb`` is."""
    memory_before_mb: float | None = None
    """What was held before there was a network, of the same kind."""
    block: int | None = None
    """Rows of one block were measured in turns, the others before or after."""
    peer: bool
    architecture: str

    @property
    def key(self) -> DenseKey:
        """Its case's."""
        return (
            *(self.task, self.backbone, self.head, self.mode, self.precision),
            *(self.batch_size, self.height, self.width),
        )

    @property
    def measured(self) -> bool:
        """Whether it was measured whole."""
        return self.status == OK


DENSE_COLUMNS: tuple[str, ...] = tuple(column.name for column in fields(DenseRow))
"""Of ``results.csv``."""


def plan_dense(
    task: Task,
    networks: Sequence[tuple[str, str, bool]],
    head: str,
    modes: Sequence[Mode],
    precisions: Sequence[DensePrecision],
    batch_sizes: Sequence[int],
    size: tuple[int, int],
    head_options: Mapping[str, Any],
) -> list[DenseCase]:
    """All cases, those that will be compared beside one another: by batch, precision, mode, network.

    Args:
        task: Which one.
        networks: (name as asked for, architecture, whether a peer).
        head: What stands on all of them.
        modes: What it does.
        precisions: Of the products.
        batch_sizes: Images a call.
        size: Height and width of the images.
        head_options: Of the head.
    """
    return [
        DenseCase(task, name, architecture, peer, head, mode, precision, batch_size, *size, head_options=head_options)
        for batch_size in batch_sizes
        for precision in precisions
        for mode in modes
        for name, architecture, peer in networks
    ]
