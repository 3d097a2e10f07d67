"""What a run needs to be made again, beside its recipe: versions, revision, hardware, command, seed."""

import os
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from openfastervit import environment

PACKAGES = (
    "openfastervit",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "numpy",
    "pillow",
    "safetensors",
    "datasets",
    "webdataset",
)


def describe_start(command: Sequence[str]) -> dict[str, Any]:
    """Plain data about one start of a run, now and in this process."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "versions": environment.versions(PACKAGES),
        "git": git_revision(),
        "hardware": environment.hardware(),
    }


def git_revision() -> dict[str, str | bool] | None:
    """The commit of the current folder's repository, and whether tracked files differ from it; None outside of one."""
    revision = _git("rev-parse", "HEAD")
    if revision is None:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": changes != ""}


def _git(*arguments: str) -> str | None:
    """What git answers; None where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # looking must not get in the way of a commit
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
