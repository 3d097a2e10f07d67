"""What a classifier's step of training costs: forward pass, cross-entropy, backward pass, fused AdamW; and its row.

Networks are ours or timm's, with random weights, on random images and labels that are there already: nothing is loaded
or augmented. Convolutions' weights and images are channels-last; weights stay in float32, and bfloat16 is autocast.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openfastervit.benchmarking.complexity import count_parameters
from openfastervit.benchmarking.peers import build_network
from openfastervit.benchmarking.status import UnsupportedError, UnsupportedSizeError, is_out_of_memory
from openfastervit.benchmarking.subject import Called, Machine, Measured
from openfastervit.benchmarking.timing import percentile
from openfastervit.inference.engines import EngineError
from openfastervit.inference.engines.engine import in_channels
from openfastervit.kernels import unavailable
from openfastervit.layers import attention

Variant = Literal["eager", "compiled", "kernels", "kernels-compiled"]
"""The network as it is; through ``torch.compile``; with attention by this project's Triton kernels, forward and
backward; with both."""
StepPrecision = Literal["fp32", "bf16"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
STEP_PRECISIONS: tuple[StepPrecision, ...] = get_args(StepPrecision)
"""bfloat16 is autocast: weights stay in float32."""

SEED = 0

StepKey = tuple[str, str, str, int, int, int]


@dataclass(frozen=True)
class TrainingStepCase:
    """One thing to measure: a ``Subject``."""

    model: str
    """As asked for."""
    architecture: str
    """Its name here, or timm's."""
    peer: bool
    """Whether it is timm's."""
    variant: Variant
    precision: StepPrecision
    batch_size: int
    height: int
    width: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Of the network's constructor, where it is one of ours."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.height, self.width

    @property
    def kernels(self) -> bool:
        """Whether attention is by kernels."""
        return self.variant.startswith("kernels")

    @property
    def compiled(self) -> bool:
        """Whether ``torch.compile`` has a part in it."""
        return self.variant.endswith("compiled")

    @property
    def key(self) -> StepKey:
        """What no other case has."""
        return self.model, self.variant, self.precision, self.batch_size, self.height, self.width

    @property
    def kin(self) -> tuple[int, str]:
        """What is compared with one another has this in common."""
        return self.batch_size, self.precision

    @property
    def counted(self) -> bool:
        """Torch takes all the memory that is taken."""
        return True

    def unavailable(self) -> str | None:
        """The status of a case that no machine has: kernels are for networks of this project."""
        if self.kernels and self.peer:
            return f"{UnsupportedError.kind}: {self.model} is timm's, and {self.variant} is for a FasterViT's attention"
        return None

    def open(self, machine: Machine) -> AbstractContextManager[Called]:
        """The network, and a step of training, in this process."""
        return open_training_step(self, machine)

    def unmeasured(self, status: str, *, threads: int | None = None) -> "TrainingStepRow":
        """The row without figures."""
        return TrainingStepRow(
            model=self.model,
            variant=self.variant,
            precision=self.precision,
            batch_size=self.batch_size,
            height=self.height,
            width=self.width,
            status=status,
            threads=threads,
            peer=self.peer,
            architecture=self.architecture,
        )

    def measured(self, found: Measured, status: str) -> "TrainingStepRow":
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
            f"a step of training {self.model}, {self.variant}, {self.precision} {self.batch_size} x {self.height} x "
            f"{self.width}"
        )


@dataclass(frozen=True, kw_only=True)
class TrainingStepRow:
    """A line of ``results.csv``: medians over the repeats. None where nothing was measured or counted."""

    model: str
    variant: str
    precision: str
    batch_size: int
    height: int
    width: int
    images_per_second: float | None = None
    images_per_second_q1: float | None = None
    images_per_second_q3: float | None = None
    seconds_p50: float | None = None
    """Of a step, over all steps of all repeats."""
    peak_memory_mb: float | None = None
    """In 10^6 bytes."""
    parameters_m: float | None = None
    """Millions."""
    kernel_stages: int | None = None
    """Stages whose attention is by kernels."""
    status: str
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
    def key(self) -> StepKey:
        """Its case's."""
        return self.model, self.variant, self.precision, self.batch_size, self.height, self.width


TRAINING_STEP_COLUMNS: tuple[str, ...] = tuple(column.name for column in fields(TrainingStepRow))
"""Of ``results.csv``."""


def plan_training_steps(
    networks: Sequence[tuple[str, str, bool]],
    variants: Sequence[Variant],
    precisions: Sequence[StepPrecision],
    batch_sizes: Sequence[int],
    sizes: Sequence[tuple[int, int]],
) -> list[TrainingStepCase]:
    """All cases that there are, those that will be compared beside one another: by batch, precision, size, network.

    Args:
        networks: (name as asked for, architecture, whether a peer).
        variants: How the step is computed; those with kernels are left out for peers.
        precisions: Of the products.
        batch_sizes: Images a step.
        sizes: Heights and widths.
    """
    cases = [
        TrainingStepCase(name, architecture, peer, variant, precision, batch_size, height, width)
        for batch_size in batch_sizes
        for precision in precisions
        for height, width in sizes
        for name, architecture, peer in networks
        for variant in variants
    ]
    return [case for case in cases if case.unavailable() is None]


@contextlib.contextmanager
def open_training_step(case: TrainingStepCase, machine: Machine) -> Iterator[Called]:
    """A case's network, and one call of it: a whole step of training, done when it returns.

    The first call compiles, where the variant does.

    Raises:
        UnsupportedError: If the network cannot be built for that size, or has nothing that kernels compute.
        EngineError: If kernels cannot run on the device.
    """
    torch.manual_seed(SEED)
    device = torch.device(machine.device)
    missing = unavailable(device) if case.kernels else None
    if missing is not None:  # training falls back; a measurement would be of something else
        raise EngineError(f"{case.variant}: {missing}")
    network = _network(case).to(device).to(memory_format=torch.channels_last).train()
    switched = attention.use_kernels(network) if case.kernels else 0
    if case.kernels and switched == 0:
        raise UnsupportedError(f"{case.model} has no attention that kernels compute; take variant eager or compiled")
    if case.compiled:
        network.compile()
    step = _step(network, *_batch(network, case, device), case.precision)
    facts = {"parameters_m": count_parameters(network) / 1e6, "kernel_stages": switched}

    def call() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    yield Called(call, lambda: facts)


def _network(case: TrainingStepCase) -> nn.Module:
    try:
        network = build_network(case.architecture, case.size, peer=case.peer, options=case.options)
        with torch.inference_mode():
            network(torch.zeros(1, in_channels(network), *case.size))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UnsupportedSizeError(str(error) or type(error).__name__) from error
    return network


def _batch(network: nn.Module, case: TrainingStepCase, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images ``(B, C, H, W)``, channels-last, and labels ``(B,)``: there, as a loader would have put them."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(case.batch_size, in_channels(network), *case.size, generator=generator)
    # Two are classes that every classifier has.
    labels = torch.randint(2, (case.batch_size,), generator=generator)
    return images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device)


def _step(network: nn.Module, images: Tensor, labels: Tensor, precision: StepPrecision) -> Callable[[], None]:
    """A step of AdamW. Its rate is 0: all of its work is done, and every step is like the first one."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.05, fused=True)
    autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        with autocast:
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # here, so that no gradients lie about while others have their turn

    return step
