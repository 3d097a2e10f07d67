"""Checkpoints made to harm: nothing in them runs, reads another file, or takes more than the file is large."""

import contextlib
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openfastervit.inference.checkpoint import load_classifier
from openfastervit.inference.exported import ExportedFileError, load_exported, read_about
from openfastervit.inference.images_in_memory import open_model
from openfastervit.models import CheckpointError, read_checkpoint, save_checkpoint
from tests.conftest import REPOSITORY
from tests.pocket import pocket

MIB = 1 << 20


class Touch:
    """Unpickling this would run a command that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (f"touch '{self.path}'",)


def _weights() -> dict[str, Any]:
    return dict(pocket().state_dict())


# --- Code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["value", "key", "beside", "in a list"])
@pytest.mark.parametrize("archived", [True, False])
def test_the_server_does_not_start_with_a_file_that_runs_code(tmp_path: Path, where: str, archived: bool) -> None:
    """The whole way: ``fastervit serve`` reads it in a worker, and ends by itself."""
    trace = tmp_path / "trace"
    evil: Any = Touch(trace)
    content = {
        "value": {"state_dict": {**_weights(), "stem.conv1.weight": evil}},
        "key": {"state_dict": _weights(), "epoch": {"args": evil}},
        "beside": {"state_dict": _weights(), "args": evil},
        "in a list": {"state_dict": _weights(), "more": [1, (2, evil)]},
    }[where]
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=archived)
    with pytest.raises(CheckpointError, match="refused: loading it would run code"):
        open_model(path, engine="torch")
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file would not have run anything, so this shows nothing"


def test_serve_refuses_a_file_that_runs_code(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "model.pth"
    torch.save({"state_dict": _weights(), "args": Touch(trace)}, path)
    command = [sys.executable, "-m", "openfastervit_cli", "serve", "--checkpoint", str(path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=REPOSITORY)
    assert done.returncode not in (0, -9), done.stderr
    assert "refused: loading it would run code" in done.stderr
    assert "Traceback" not in done.stderr
    assert not trace.exists()


GLOBALS = [
    "builtins eval",
    "builtins exec",
    "subprocess Popen",
    "os popen",
    "torch load",
    "torch.hub load",
    "numpy load",
]


@pytest.mark.parametrize("name", GLOBALS)
@pytest.mark.parametrize("archived", [True, False])
def test_functions_by_name(tmp_path: Path, name: str, archived: bool) -> None:
    """Hand-made pickles, one opcode after another: ``c`` takes a global, ``R`` calls it."""
    module, function = name.split()
    pickled = b"\x80\x02" + f"c{module}\n{function}\n".encode() + b"(X\x01\0\0\0xtR."
    path = tmp_path / "model.pth"
    if archived:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", "3\n")
    else:
        path.write_bytes(pickled)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_an_archive_on_several_disks(tmp_path: Path) -> None:
    """Found by fuzzing: zipfile has an error of its own for it."""
    path = tmp_path / "model.pth"
    end = struct.pack("<4sLQL", b"PK\6\7", 1, 0, 2) + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)
    path.write_bytes(b"PK\3N." + bytes(100) + end)
    with pytest.raises(CheckpointError, match=r"model\.pth is"):
        read_checkpoint(path)


# --- More than the file is large --------------------------------------------------------------------------------------


def _compressed(path: Path) -> None:
    """An archive of torch's whose gibibyte of weights is zeros, compressed."""
    whole = io.BytesIO()
    torch.save({"stem.conv1.weight": torch.zeros(1 << 28)[:1].clone()}, whole)
    with zipfile.ZipFile(whole) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            with packed.open(name, "w", force_zip64=True) as member:
                if "/data/" in name:
                    for _ in range(1024):
                        member.write(bytes(MIB))
                else:
                    member.write(plain.read(name))


def _expanded(path: Path) -> None:
    """Four bytes, shown as a tebibyte."""
    torch.save({"stem.conv1.weight": torch.zeros(1).expand(1 << 19, 1 << 19)}, path)


def _shared(path: Path) -> None:
    """A mebibyte under ten thousand names."""
    stored = torch.zeros(MIB // 4)
    torch.save({f"stem.{number}": stored.view(-1) for number in range(10_000)}, path)


def _sparse(path: Path) -> None:
    place = torch.tensor([[0], [0]])
    torch.save({"stem.conv1.weight": torch.sparse_coo_tensor(place, torch.ones(1), (1 << 20, 1 << 20))}, path)


def _many_blocks(path: Path) -> None:
    save_checkpoint(pocket(), path, metadata={"model": "fastervit_0", "overrides": {"depths": [10**8, 1, 1, 1]}})


def _wide(path: Path) -> None:
    save_checkpoint(pocket(), path, metadata={"model": "fastervit_0", "overrides": {"dim": 10**7}})


def _long_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


def _beyond_the_end(path: Path) -> None:
    tensors = {"stem.conv1.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    header = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))


def _overlapping(path: Path) -> None:
    told = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
    header = json.dumps({f"stem.{number}": told for number in range(1000)}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))


def _nested(path: Path) -> None:
    path.write_bytes(b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".")


LARGE: list[tuple[Callable[[Path], None], str]] = [
    (_compressed, "model.pth"),
    (_expanded, "model.pth"),
    (_shared, "model.pth"),
    (_sparse, "model.pth"),
    (_nested, "model.pth"),
    (_many_blocks, "model.safetensors"),
    (_wide, "model.safetensors"),
    (_long_header, "model.safetensors"),
    (_beyond_the_end, "model.safetensors"),
    (_overlapping, "model.safetensors"),
]
READ = """
import resource, sys
from openfastervit.inference.checkpoint import load_classifier
from openfastervit.models import CheckpointError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_classifier(sys.argv[1])
except CheckpointError as error:
    assert str(error).startswith(sys.argv[1]), error
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
else:
    sys.exit("it was read")
"""


@pytest.mark.parametrize(("write", "name"), LARGE, ids=[write.__name__.strip("_") for write, _ in LARGE])
def test_small_files_stay_small(tmp_path: Path, write: Callable[[Path], None], name: str) -> None:
    """Refused with an error that names the file, within memory of the order of the file, in a process of its own."""
    path = tmp_path / name
    write(path)
    assert path.stat().st_size < 8 * MIB
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) * 1024 < 300 * MIB


def test_shared_weights_within_reason_are_read(tmp_path: Path) -> None:
    """The released layout stores one of its weights twice, and training scripts store views."""
    base = torch.arange(8.0)
    torch.save({"stem.a": base, "stem.b": base, "stem.c": base[2:6]}, tmp_path / "model.pth")
    found = read_checkpoint(tmp_path / "model.pth")
    assert torch.equal(found["stem.c"], base[2:6])


# --- Other files ------------------------------------------------------------------------------------------------------

ABOUT = json.dumps(
    {
        "model": "fastervit_0",
        "classes": ["a", "b"],
        "input": {"size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
        "export": {"format": "onnx", "precision": "fp32", "size": [32, 32], "preprocessing": False, "versions": {}},
    }
)


def _onnx(path: Path, location: str, length: int) -> None:
    """A graph whose answer is what lies in another file."""
    import onnx
    from onnx import TensorProto, helper

    stored = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[1, length // 4])
    stored.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        stored.external_data.add(key=key, value=value)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, length // 4])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["stolen"], ["logits"])], "graph", [images], [logits], initializer=[stored]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="openfastervit", value=ABOUT)
    onnx.save(model, path)


@pytest.mark.parametrize("form", ["../secret.bin", "{absolute}", "link.bin", "sub/../../secret.bin"])
def test_onnx_reads_nothing_beyond_its_folder(tmp_path: Path, form: str) -> None:
    pytest.importorskip("onnxruntime", reason="an extra: openfastervit[export]")
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    secret = np.arange(16, dtype=np.float32)
    secret.tofile(tmp_path / "secret.bin")
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    _onnx(folder / "model.onnx", form.format(absolute=tmp_path / "secret.bin"), secret.nbytes)
    assert read_about(folder / "model.onnx").classes == ("a", "b")
    with pytest.raises(ValueError, match=r"model\.onnx"):
        load_exported(folder / "model.onnx").engine(torch.zeros(1, 3, 32, 32))
    secret.tofile(folder / "weights.bin")
    _onnx(folder / "whole.onnx", "weights.bin", secret.nbytes)
    found = load_exported(folder / "whole.onnx").engine(torch.zeros(1, 3, 32, 32))
    assert torch.equal(found, torch.from_numpy(secret)[None]), "weights beside the file are read, or this shows nothing"


ENTITIES = {
    "a file": '<!DOCTYPE net [<!ENTITY e SYSTEM "file://{secret}">]>',
    "a server": '<!DOCTYPE net [<!ENTITY e SYSTEM "http://127.0.0.1:9/">]>',
    "laughs": "<!DOCTYPE net ["
    + '<!ENTITY e0 "ha">'
    + "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    + '<!ENTITY e "&e11;">]>',
}


@pytest.mark.parametrize("entity", ENTITIES.values(), ids=list(ENTITIES))
def test_openvino_expands_no_entities(tmp_path: Path, entity: str) -> None:
    pytest.importorskip("openvino", reason="an extra: openfastervit[openvino]")
    secret = tmp_path / "secret"
    secret.write_text("do not tell", encoding="utf-8")
    about = f'<openfastervit value="{ABOUT.replace(chr(34), "&quot;").replace("fastervit_0", "&e;")}"/>'
    path = tmp_path / "model.xml"
    head = entity.replace("{secret}", str(secret))
    path.write_text(
        f'<?xml version="1.0"?>{head}<net name="x" version="11"><layers/><edges/><rt_info>{about}</rt_info></net>',
        encoding="utf-8",
    )
    (tmp_path / "model.bin").write_bytes(b"")
    (tmp_path / "plain.bin").write_bytes(b"")
    (tmp_path / "plain.xml").write_text(path.read_text("utf-8").replace(head, "").replace("&e;", "known"), "utf-8")
    assert read_about(tmp_path / "plain.xml").model == "known", "such a file is read, or this shows nothing"
    told: str | None = ""
    with contextlib.suppress(ExportedFileError):  # not to read it at all is as good
        told = read_about(path).model
    assert told is not None
    assert "do not tell" not in told
    assert len(told) < 100


def test_a_programs_text_may_be_compressed(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("model/extra/openfastervit", "w") as f,
    ):
        for _ in range(1024):
            f.write(b" " * MIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ExportedFileError, match="damaged"):
        read_about(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 300 * MIB


@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model.pt2"])
def test_a_pickle_under_another_name(tmp_path: Path, name: str) -> None:
    trace = tmp_path / "trace"
    (tmp_path / name).write_bytes(pickle.dumps(Touch(trace)))
    with pytest.raises(ValueError, match=name):
        open_model(tmp_path / name)
    assert not trace.exists()


def test_metadata_names_no_other_weights(tmp_path: Path) -> None:
    """What a file says of its network is no way to other files, or to the network of others."""
    for overrides in (
        {"checkpoint": "/etc/passwd"},
        {"pretrained": True},
        {"checkpoint_path": "x"},
        {"device": "cuda"},
    ):
        path = save_checkpoint(
            pocket(), tmp_path / "model.safetensors", metadata={"model": "fastervit_0", "overrides": overrides}
        )
        with pytest.raises(CheckpointError, match="is no option of a network"):
            load_classifier(path)
