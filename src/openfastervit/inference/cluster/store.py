"""The folder that a job writes, on any file system of fsspec's.

- ``job.json``: what the job was begun with. A job with other settings is refused.
- ``rows/SHARD.parquet``: the rows of a complete shard. The file is there when the shard is complete, and not before.
- ``unreadable/SHARD.jsonl``: the shard's images that have no row, and why; it is there before the rows are.
"""

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openfastervit.atomic import recover, write_atomically
from openfastervit.inference.cluster.sources import local_path, open_store
from openfastervit.inference.resume import JobError, differences, locked

ROWS, UNREADABLE, MANIFEST = "rows", "unreadable", "job.json"

_PUT_IS_ATOMIC = frozenset(
    {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "r2", "memory"}  # keys, and no folders
)


class Store:
    """The folder.

    Args:
        location: A path, or a URL of fsspec's.

    Raises:
        ValueError: If the file system is unknown.
    """

    def __init__(self, location: str) -> None:
        path = local_path(location)
        self.location = location
        self._folder = None if path is None else Path(path).absolute()
        self._files, self._root = open_store(location if self._folder is None else str(self._folder))
        self._root = self._root.rstrip("/")
        protocols = self._files.protocol
        self._put_is_atomic = not _PUT_IS_ATOMIC.isdisjoint([protocols] if isinstance(protocols, str) else protocols)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The folder for one process alone, where it is on a disk; what a killed one had half-written is cleared away.

        Raises:
            JobError: If another process is at work on it.
            OSError: If it cannot be made.
        """
        if self._folder is None:
            yield
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked(self._folder):
            try:
                for folder in (self._folder, *(path for path in self._folder.rglob("*") if path.is_dir())):
                    recover(folder)
                yield
            finally:
                (self._folder / ".lock").unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # there is something in it
                    self._folder.rmdir()

    def begin(self, settings: Mapping[str, Any], versions: Mapping[str, str], *, overwrite: bool) -> dict[str, Any]:
        """Whether the job may go on here: what was chosen when it was begun, empty where it was not.

        Raises:
            JobError: If a job with other settings was begun here, or the folder is somebody else's.
        """
        begun = self._manifest()
        if begun is None and self._names(""):
            raise JobError(f"{self.location} holds files that no job wrote ({MANIFEST} is missing); give another --out")
        if begun is None:
            return {}
        if overwrite:
            for name in [*self._names(ROWS), MANIFEST, *self._names(UNREADABLE)]:
                self._files.rm_file(f"{self._root}/{name}")
            return {}
        here = json.loads(json.dumps({**settings, **versions}))
        found = differences({**begun["settings"], **begun["versions"]}, here)
        if found:
            raise JobError(
                f"{self.location} was begun with other settings ({found}); give those to go on, --overwrite to begin "
                "anew, or another --out"
            )
        return dict(begun["chosen"])

    def write_manifest(
        self, settings: Mapping[str, Any], versions: Mapping[str, str], chosen: Mapping[str, Any]
    ) -> None:
        """Say what the job was begun with.

        Raises:
            OSError: If it cannot be written.
        """
        content = {"settings": dict(settings), "versions": dict(versions), "chosen": dict(chosen)}
        self._write(MANIFEST, (json.dumps(content, indent=2) + "\n").encode())

    def complete(self) -> set[str]:
        """Names of the shards that are complete."""
        return {name[len(ROWS) + 1 :].removesuffix(".parquet") for name in self._names(ROWS)}

    def unreadable(self) -> list[str]:
        """Names of the shards with images that have no row."""
        return [name[len(UNREADABLE) + 1 :].removesuffix(".jsonl") for name in self._names(UNREADABLE)]

    def write(self, shard: str, rows: bytes, unreadable: bytes) -> None:
        """Write a complete shard: all of it is there afterwards, or the shard does not count.

        Raises:
            OSError: If it cannot be written: the disk is full, the store does not answer.
        """
        told = f"{UNREADABLE}/{shard}.jsonl"
        if unreadable:
            self._write(told, unreadable)
        elif self._files.exists(f"{self._root}/{told}"):  # of a run that ended before the rows were there
            self._files.rm_file(f"{self._root}/{told}")
        self._write(f"{ROWS}/{shard}.parquet", rows)

    def _names(self, folder: str) -> list[str]:
        """The files in a folder and its subfolders, from the root on, but for hidden ones."""
        where = f"{self._root}/{folder}" if folder else self._root
        self._files.invalidate_cache()
        try:
            found = self._files.find(where)
        except FileNotFoundError:
            return []
        names = [str(path)[len(self._root) + 1 :] for path in found]
        return [name for name in names if not name.rpartition("/")[2].startswith(".")]

    def _manifest(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self._files.cat_file(f"{self._root}/{MANIFEST}"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise JobError(f"{self.location}/{MANIFEST} is damaged ({error}); remove the folder") from error
        if not isinstance(content, dict) or not content.keys() >= {"settings", "versions", "chosen"}:
            raise JobError(f"{self.location}/{MANIFEST} is none of ours; give another --out")
        return content

    def _write(self, name: str, content: bytes) -> None:
        if self._folder is not None:
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
            return
        path_there = f"{self._root}/{name}"
        if self._put_is_atomic:
            self._files.pipe_file(path_there, content)
            return
        folder, _, last = path_there.rpartition("/")
        temporary = f"{folder}/.{last}.{secrets.token_hex(4)}.tmp"
        self._files.makedirs(folder, exist_ok=True)
        try:
            self._files.pipe_file(temporary, content)
            self._files.mv(temporary, path_there)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(temporary)
            raise
