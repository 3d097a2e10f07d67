"""Images in folders and in WebDataset shards, and what the local predictor makes of them."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import webdataset

import openfastervit_cli
from openfastervit.inference.cluster import ClusterJob, read_network
from tests.pocket import picture

TOPK = 2


def encoded(seed: int, size: tuple[int, int] = (90, 70), kind: str = "png") -> bytes:
    file = io.BytesIO()
    picture(seed, size).save(file, kind)
    return file.getvalue()


def write_folder(folder: Path, count: int, size: tuple[int, int] = (90, 70)) -> Path:
    """Images in a folder and a subfolder; the fourth cannot be read."""
    (folder / "sub").mkdir(parents=True)
    for number in range(count):
        content = encoded(number, size)
        path = folder / ("sub" if number % 3 == 1 else "") / f"{number:03}.png"
        path.write_bytes(content[: len(content) // 2] if number == 3 else content)
    return folder


def write_shards(folder: Path, count: int, per_shard: int, size: tuple[int, int] = (90, 70)) -> Path:
    """Shards by WebDataset's own writer; the fourth image cannot be read."""
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / "some-%04d.tar"), maxcount=per_shard, verbose=0) as writer:
        for number in range(count):
            content = encoded(number, size)
            broken = content[: len(content) // 2]
            writer.write({"__key__": f"in/{number:03}", "png": broken if number == 3 else content, "cls": number % 3})
    return folder


def write_tar(path: Path, files: Sequence[tuple[str, bytes]], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def job(source: object, out: object, checkpoint: Path, **settings: object) -> ClusterJob:
    values = {"topk": TOPK, "batch_size": 4, "engine": "torch-folded", "device": "cpu", **settings}
    return ClusterJob(str(source), str(out), read_network([checkpoint]), "sha256:1", **values)


def rows_in(out: Path) -> pd.DataFrame:
    """All rows, with the files in the order of their names."""
    files = sorted((out / "rows").rglob("*.parquet"))
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def unreadable_in(out: Path) -> list[dict[str, str]]:
    files = sorted((out / "unreadable").rglob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def local_rows(source: Path, checkpoint: Path, out: Path) -> pd.DataFrame:
    """What ``fastervit predict`` says without a cluster."""
    args = ["predict", source, "--checkpoint", checkpoint, "--out", out, "--topk", TOPK, "--batch-size", 4]
    assert openfastervit_cli.main([*map(str, args), "--device", "cpu", "--engine", "torch-folded"]) in (0, 3)
    return pd.read_parquet(out)


def unpacked(shards: Path, folder: Path) -> Path:
    """The images of shards as files; sorted names are in the shards' order."""
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                if member.name.endswith(".png"):
                    path = folder / shard.name / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    source = archive.extractfile(member)
                    assert source is not None
                    path.write_bytes(source.read())
    return folder


def same_rows(found: pd.DataFrame, expected: pd.DataFrame, names: Iterable[str]) -> None:
    """One row an image, in order, with equal classes; scores may differ in what depends on the machine."""
    assert found["image"].tolist() == list(names)
    assert found.columns.tolist() == expected.columns.tolist()
    assert found.dtypes.tolist() == expected.dtypes.tolist()
    for column in found.columns[1:]:
        if column.startswith("score"):
            assert (found[column] - expected[column]).abs().max() <= 1e-4
        else:
            assert found[column].tolist() == expected[column].tolist()
