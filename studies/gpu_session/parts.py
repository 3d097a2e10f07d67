"""The parts of the session, the most important ones first: what does not fit into the time is at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from openfastervit.benchmarking.training_step import TrainingStepCase
from studies.gpu_session.cases import COMPILED, EAGER, Entry, WayCase

FOLDED, GRAPHED, KERNELS, AUTOTUNED = "torch-folded", "torch-graphed", "torch-kernels", "torch-compiled"
OURS = (KERNELS, GRAPHED, AUTOTUNED, FOLDED)
"""Ways to run a FasterViT fast. ``torch-compiled`` is the folded network with weights in half precision, through
``torch.compile`` with ``max_autotune``, from CUDA graphs; peers have it too."""
STEPS = ("compiled", "kernels-compiled", "kernels", "eager")
"""Of a step of training; what takes longest to build comes first."""
HEADLINE, LATENCY, TRAINING, FP8 = "batch 128", "batch 1", "training", "fp8"

FAMILY = tuple(f"fastervit_{i}" for i in range(5))
PEERS = (
    *("convnext_tiny", "convnext_small", "convnext_base"),
    *("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224"),
    *("efficientvit_b3", "efficientvit_l1", "efficientvit_l2", "resnet50"),
)
LARGE = {384: 128, 768: 32, 1024: 16}
"""Batches of larger images."""


@dataclass(frozen=True)
class Part:
    """Entries that are compared with one another."""

    name: str
    table: str
    entries: Sequence[Entry]
    building: float
    """The most that building may take, as a share of the session's time."""
    measuring: float
    """The most that the repeats may take, likewise."""


@dataclass(frozen=True)
class Scale:
    """What stands for the networks, and how large all is."""

    family: Mapping[str, Mapping[str, Any]]
    """FasterViTs by name, with the options of the constructor."""
    peers: Sequence[str]
    side: int
    large: Mapping[int, int]
    """Batches by side, of larger images."""
    batches: tuple[int, int, int, int]
    """In the place of 128, 1, 8 and 256."""
    trained: Sequence[str]
    precision: str = "bf16"
    fast: Sequence[str] = (KERNELS, GRAPHED)
    """Ways to run a FasterViT that are measured beside eager and compiled."""
    fast_alone: Sequence[str] = (KERNELS, GRAPHED)
    """The same for batches of one."""
    autotuned: bool = True


FULL = Scale(
    family={name: {} for name in FAMILY},
    peers=PEERS,
    side=224,
    large=LARGE,
    batches=(128, 1, 8, 256),
    trained=("fastervit_0", "fastervit_2"),
)
POCKET: Mapping[str, Any] = {"dim": 16, "stem_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4)}
DRY = Scale(
    family={"fastervit_0": POCKET},
    peers=("test_convnext",),
    side=32,
    large={64: 1},
    batches=(2, 1, 3, 4),
    trained=("fastervit_0",),
    fast=(FOLDED,),
    fast_alone=(KERNELS, FOLDED),  # seconds a call, in the interpreter
    autotuned=False,
)


def parts(scale: Scale) -> list[Part]:
    """All parts, in their order."""
    first, *rest = scale.family
    family = [first, *rest]
    highest = [name for name in (first, "fastervit_2") if name in scale.family]
    many, one, few, most = scale.batches
    baseline, *others = scale.peers
    fast, alone = scale.fast, scale.fast_alone

    def part(
        name: str,
        batch: int,
        ours: Mapping[str, Sequence[str]],
        peers: Sequence[str],
        theirs: Sequence[str],
        shares: tuple[float, float],
        side: int = scale.side,
    ) -> Part:
        """Kernels come first: they are chosen by measuring, best done while the others have just begun to compile.

        Then what compiles, the largest first: it takes longest.
        """
        wanted = [(way, network, False) for network in reversed([*ours]) for way in ours[network]]
        wanted += [(way, network, True) for network in peers for way in theirs]
        order = (KERNELS, AUTOTUNED, COMPILED, GRAPHED, FOLDED, EAGER)
        wanted.sort(key=lambda entry: order.index(entry[0]))
        entries = [
            _inference(scale, name, network, way, batch, side, scale.precision, peer=peer)
            for way, network, peer in wanted
        ]
        return Part(name, "inference", entries, *shares)

    def only_first(fast: Sequence[str]) -> dict[str, Sequence[str]]:
        """Compiled is the smallest network alone: compiling takes long."""
        return {first: (COMPILED, *fast, EAGER), **dict.fromkeys(rest, (*fast, EAGER))}

    whole = dict.fromkeys(family, (COMPILED, *fast, EAGER))
    plain = (COMPILED, EAGER)
    steps = [_step(scale, name, way) for name in scale.trained for way in STEPS]
    fp8 = [
        _inference(scale, FP8, name, fast[0], many, scale.side, precision, peer=False)
        for name in highest
        for precision in ("fp8", scale.precision)
    ]
    found = [
        part(HEADLINE, many, whole, scale.peers, plain, (0.33, 0.14)),
        part(LATENCY, one, only_first(alone), [baseline], plain, (0.13, 0.07)),
        Part(TRAINING, "training", steps, 0.17, 0.07),
        Part(FP8, "inference", fp8, 0.08, 0.03),
        *(part(f"batch {batch}", batch, only_first(fast), [baseline], plain, (0.12, 0.06)) for batch in (few, most)),
        *(
            part(
                f"{side} x {side}",
                batch,
                dict.fromkeys(highest, (COMPILED, *fast, EAGER)),
                (),
                (),
                (0.12, 0.05),
                side,
            )
            for side, batch in scale.large.items()
        ),
    ]
    if scale.autotuned:
        ours = dict.fromkeys(family, (AUTOTUNED, *fast))
        found.append(part(f"{HEADLINE}, autotuned", many, ours, scale.peers, (AUTOTUNED,), (0.5, 0.12)))
    if others:
        fastest = dict.fromkeys(family, (fast[0],))
        for batch in (one, few, most):
            found.append(part(f"batch {batch}, peers", batch, fastest, others, plain, (0.3, 0.1)))
    return found


def _inference(
    scale: Scale, part: str, name: str, way: str, batch: int, side: int, precision: str, *, peer: bool
) -> Entry:
    case = WayCase(
        model=name,
        architecture=name,
        peer=peer,
        engine=way,
        precision=cast(Any, precision),
        batch_size=batch,
        height=side,
        width=side,
        options=scale.family.get(name, {}),
    )
    return Entry(part, name, way, peer, precision, batch, side, case)


def _step(scale: Scale, name: str, way: str) -> Entry:
    batch = scale.batches[0]
    case = TrainingStepCase(
        model=name,
        architecture=name,
        peer=False,
        variant=cast(Any, way),
        precision=cast(Any, scale.precision),
        batch_size=batch,
        height=scale.side,
        width=scale.side,
        options=scale.family[name],
    )
    return Entry(TRAINING, name, way, False, scale.precision, batch, scale.side, case)
