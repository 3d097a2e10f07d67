"""The checkpoints of a run: folders that are complete once they have their name, and say so when damaged later."""

import errno
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from openfastervit.atomic import free_space, is_full, remove_directory, write_directory

MANIFEST = "manifest.json"
"""Size and sha256 of each file beside it. Written last."""

_NAME = re.compile(r"step-(\d{8,})")


def complete(folder: Path) -> list[tuple[int, Path]]:
    """Steps and folders of the checkpoints that were written to their end, oldest first."""
    if not folder.is_dir():
        return []
    named = [(_NAME.fullmatch(entry.name), entry) for entry in folder.iterdir() if entry.is_dir()]
    return sorted((int(match[1]), entry) for match, entry in named if match)


def newest(folder: Path) -> tuple[int, Path] | None:
    """The newest checkpoint that is as it was written; a warning names each newer one that is not.

    Every byte is read for it. None where no checkpoint was written yet.

    Raises:
        ValueError: If there are checkpoints, and all of them are damaged.
    """
    found = complete(folder)
    problems: list[str] = []
    for step, path in reversed(found):
        problem = damage(path)
        if problem is None:
            for text in problems:
                warnings.warn(f"{text}; the checkpoint of step {step} is taken", stacklevel=2)
            return step, path
        problems.append(f"{path} is damaged: {problem}")
    if problems:
        raise ValueError(
            f"no checkpoint in {folder} is whole ({'; '.join(problems)}). "
            "Delete that folder to start the run from its beginning"
        )
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's folder, or None: each file must have the size and sha256 of the manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        files = manifest["files"]
        if f"step-{manifest['step']:08d}" != path.name:
            return f"its {MANIFEST} is that of step {manifest['step']}"
        for name, wanted in files.items():
            found = _fingerprint(path / name)
            if found["size"] != wanted["size"]:
                return f"{name} has {found['size']} bytes where {wanted['size']} were written"
            if found["sha256"] != wanted["sha256"]:
                return f"{name} holds other bytes than were written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is no list of files"
    return None if files else f"{MANIFEST} lists no file"


def save(folder: Path, step: int, files: Mapping[str, Callable[[Path], None]], keep: int) -> Path:
    """Write a checkpoint, then remove the older ones beyond ``keep``.

    Checkpoints of later steps go as well: they are what a run left behind when it went on from an earlier step.

    Args:
        folder: Where the checkpoints lie.
        step: The step it was taken after.
        files: Names, and what writes each to the path that it is given.
        keep: How many to keep, this one among them.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: If an argument makes no sense.
        OSError: If it cannot be written. Those from before are whole then, and nothing of this one is left.
    """
    if step < 0:
        raise ValueError(f"step={step} is negative")
    if keep < 1:
        raise ValueError(f"keep={keep} would keep no checkpoint; give at least 1")
    for name in files:
        if Path(name).name != name or name == MANIFEST or name.startswith("."):
            raise ValueError(f"{name!r} cannot be a checkpoint's file; give a plain name other than {MANIFEST}")
    if not files:
        raise ValueError("a checkpoint needs at least one file")
    path = folder / f"step-{step:08d}"
    writing = path.name

    def fill(temporary: Path) -> None:
        nonlocal writing
        for name, write in files.items():
            writing = f"{path.name}/{name}"
            write(temporary / name)
        writing = f"{path.name}/{MANIFEST}"
        (temporary / MANIFEST).write_text(_manifest(temporary, step), encoding="utf-8")

    folder.mkdir(parents=True, exist_ok=True)
    free = free_space(folder)
    try:
        write_directory(path, fill)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _why(error)
        if reason is None:
            raise
        number, text = reason
        before = [f"step {older}" for older, _ in complete(folder)]
        safe = f"what was saved before is whole ({', '.join(before)})" if before else "none was saved before"
        raise OSError(number, f"{text} ({free} before it); {safe}", str(folder / writing)) from error
    _thin_out(folder, step, keep)
    return path


def _why(error: Exception) -> tuple[int, str] | None:
    """Number and words of a failure to write; None where the fault is another."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno is not None and (chain is error or is_full(chain)):
            return chain.errno, chain.strerror or str(chain)
        chain = chain.__context__
    text = " ".join(str(error).split())
    if match := re.search(r"\(os error (\d+)\)", text):  # safetensors
        return int(match[1]), os.strerror(int(match[1]))
    if "inline_container" in text or "PytorchStreamWriter" in text:  # torch.save tells no more
        return errno.EIO, "torch could not write all of it"
    return None


def _manifest(folder: Path, step: int) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): _fingerprint(path) for path in paths}
    return json.dumps({"step": step, "files": files}, indent=2) + "\n"


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def _thin_out(folder: Path, step: int, keep: int) -> None:
    found = complete(folder)
    earlier = [path for number, path in found if number < step]
    later = [path for number, path in found if number > step]
    for path in [*later, *earlier[: max(0, len(earlier) - (keep - 1))]]:
        try:
            remove_directory(path)
        except OSError as error:  # the new checkpoint is safe: no reason to end the run
            warnings.warn(f"{path} cannot be removed ({error.strerror}); it takes space only", stacklevel=3)
