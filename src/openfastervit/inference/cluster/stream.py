"""The two steps as a dataset of Ray Data's."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from openfastervit.inference.cluster.checkpoint import Network
from openfastervit.inference.cluster.decoding import decode
from openfastervit.inference.cluster.predicting import EngineSettings, Predict
from openfastervit.inference.cluster.resources import DECODING_CPUS, Placement
from openfastervit.inference.preparation import Preparation

BLOCK_BYTES = 16 << 20
"""Of the blocks between the steps: the driver deals with each, so they must not be too small, and a decoding task holds
some, so not too large either."""


def losses() -> tuple[type[Exception], ...]:
    """What Ray raises when it has lost work that it cannot do again by itself."""
    from ray import exceptions
    from ray.data.exceptions import ExecutionTimeoutError, SystemException

    return (
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
        exceptions.RayActorError,
        exceptions.RaySystemError,
        exceptions.WorkerCrashedError,
        ExecutionTimeoutError,
        SystemException,
    )


def stream(
    work: list[dict[str, Any]],
    network: Any,
    settings: EngineSettings,
    placement: Placement,
    preparation: Preparation,
    workers: int | None,
) -> Iterator[pa.Table]:
    """Shards to blocks of ``predicting.ROWS``, in the order they are done.

    Args:
        work: A number and a pickled shard each.
        network: A reference to a ``Network``.
        settings: Of the engines.
        placement: Of the engines.
        preparation: From images to pixels.
        workers: Tasks that decode at once; by default as many as there are processors.

    Raises:
        Exception: One of ``losses``, if workers are gone with what only they could do.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    shards = ray.data.from_items(work, override_num_blocks=len(work))  # a task for each
    parts = shards.map_batches(
        decode,  # type: ignore[arg-type]  # the rest of its arguments
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"preparation": preparation, "batch_size": settings.batch_size},
        compute=ray.data.TaskPoolStrategy(size=workers),
        num_cpus=DECODING_CPUS,
    )
    rows = parts.map_batches(
        Predict,
        batch_size=1,  # of the rows: each is a batch of images
        batch_format="pyarrow",
        fn_constructor_args=(network, settings),
        compute=ray.data.ActorPoolStrategy(size=placement.replicas),
        **placement.options,
    )
    yield from rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def choose_engine(network: Any, settings: EngineSettings, placement: Placement) -> tuple[str, list[str]]:
    """The engine that is fastest on a worker, found by measuring there, and what is told meanwhile.

    Raises:
        ValueError: If there is none.
    """
    import ray

    options = {key: value for key, value in placement.options.items() if key != "max_restarts"}
    name, lines, wrong = ray.get(ray.remote(**options)(_choose).remote(network, settings))
    if wrong is not None:
        raise ValueError(wrong)
    return name, lines


def _choose(network: Network, settings: EngineSettings) -> tuple[str, list[str], str | None]:
    import torch

    if settings.device == "cpu":
        torch.set_num_threads(1)
    lines: list[str] = []
    try:
        with network.predictor(
            device=settings.device,
            engine=settings.engine,
            precision=settings.precision,
            batch_size=settings.batch_size,
            tell=lines.append,
        ) as predictor:
            return predictor.engine.name, lines, None
    except ValueError as error:
        return "", lines, str(error)
