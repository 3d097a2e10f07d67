"""Who runs where: how many engines a cluster takes, and what an engine and a decoding task ask of it."""

from dataclasses import dataclass
from typing import Any

DECODING_CPUS = 0.9
"""Of a processor, for a task that decodes: one on each."""
_ENGINE_CPUS = 0.01
"""Of a processor, for Ray's books: an engine on a CPU shares its processor with a decoding task, which waits whenever
the engine has enough to do. So no processor is idle whatever the two take, and where nodes are lost, the engines that
move to those that are left leave them room to decode."""


@dataclass(frozen=True)
class Placement:
    """Where engines run."""

    device: str
    """As torch names it, on the worker."""
    replicas: int
    """Engines at work at once."""
    num_gpus: int
    """Of one engine."""

    @property
    def options(self) -> dict[str, Any]:
        """What Ray is asked for an engine.

        An engine on a CPU is restarted elsewhere if its node is lost. One on a GPU is not: with no GPU to spare Ray
        would wait for one for ever, with the work that the engine had. The loss is an error instead, and the job goes
        on with the engines that there are then.
        """
        restarts = {"max_restarts": 0} if self.num_gpus else {}
        return {"num_cpus": _ENGINE_CPUS, **({"num_gpus": self.num_gpus} if self.num_gpus else {}), **restarts}


def place(device: str, replicas: int | None, resources: dict[str, float]) -> Placement:
    """Where engines run on a cluster.

    Args:
        device: "cpu", "cuda", or "auto" for GPUs where there are any.
        replicas: Engines at once; by default one for each GPU, or for each processor where there is none.
        resources: Of the cluster, as ``ray.cluster_resources`` tells them.

    Raises:
        ValueError: If the device is not to be had there, or too many engines are asked for.
    """
    gpus, cpus = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
    kind = ("cuda" if gpus else "cpu") if device == "auto" else device
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} is not for a cluster; choose cpu, cuda, or auto for the best there is")
    if kind == "cpu":
        return Placement("cpu", replicas or cpus, 0)
    if gpus < max(1, replicas or 1):
        raise ValueError(f"replicas={replicas or 1} on cuda need as many GPUs, and the cluster has {gpus}")
    return Placement("cuda", replicas or gpus, 1)
