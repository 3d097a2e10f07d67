"""Classifying more images than one machine can read, on a cluster of Ray's.

``ray.data`` is the engine. Its rows are shards: a tar file of WebDataset's, or a block of a folder's images. They go
through two steps, which Ray Data runs at the same time and joins by blocks in its object store::

    shard -> [decode: tasks on processors] -> parts: pixels of a batch -> [predict: actors with an engine] -> rows

and arrive at the driver, which collects a shard's parts and writes its file when all are there: by a temporary name and
a move, or on an object store by one put, so that a file is whole or not there at all.

The driver writes, and not a third step of Ray Data, because the shard is the unit of resuming. Ray Data names its files
by its own blocks, and what it does again after a lost node would be a second file. Here a part has a number and counts
once, whichever worker it came from, and a shard's file is replaced whole or left alone. What passes through the driver
is rows, some hundred bytes an image; pixels never do.

Memory: a decoding task is held back while two of its blocks wait to be predicted, so of a shard of any size a few
batches of pixels are held, and the rows of shards that are under way.

- ``sources.py``: what to classify, as shards. ``tar.py`` reads those of WebDataset.
- ``decoding.py``, ``predicting.py``: the two steps.
- ``store.py``: the folder of rows, on any file system of fsspec's.
- ``job.py``: the job, from its settings to its last file. ``resources.py`` tells who runs where.
- ``connection.py``: finding or starting the cluster.

Nothing here is imported with ``openfastervit``: Ray takes its time.
"""

from openfastervit.inference.cluster.checkpoint import Network, read_network
from openfastervit.inference.cluster.connection import run_on
from openfastervit.inference.cluster.job import ClusterJob, Event, Planned, Progress, ShardFailed, Told, Written

__all__ = [
    "ClusterJob",
    "Event",
    "Network",
    "Planned",
    "Progress",
    "ShardFailed",
    "Told",
    "Written",
    "read_network",
    "run_on",
]
