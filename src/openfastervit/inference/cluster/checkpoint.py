"""A checkpoint that travels: workers need not see the disk that it lies on."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openfastervit.inference.checkpoint import load_classifier
from openfastervit.inference.engines import Precision
from openfastervit.inference.exported import is_exported, read_about
from openfastervit.inference.predictor import Predictor
from openfastervit.inference.preparation import Preparation


@dataclass(frozen=True)
class Network:
    """A checkpoint or an exported network, as bytes, and what is to be known of it before it runs."""

    files: dict[str, NDArray[np.uint8]]
    """By name: the one that was named first, then weights that lie beside it."""
    model: str | None
    img_size: tuple[int, ...] | None
    told: dict[str, Any]
    """Arguments of ``timm.data.create_transform``."""
    classes: int

    @property
    def preparation(self) -> Preparation:
        """From images to what the network takes."""
        return Preparation.of(self.told)

    def predictor(
        self,
        *,
        device: str,
        engine: str,
        precision: Precision,
        batch_size: int,
        tell: Callable[[str], None] = lambda line: None,
    ) -> Predictor:
        """The network on an engine, as ``Predictor.from_checkpoint`` makes it and raises."""
        with tempfile.TemporaryDirectory(prefix="fastervit-") as folder:
            for name, content in self.files.items():
                content.tofile(Path(folder, name))
            return Predictor.from_checkpoint(
                Path(folder, next(iter(self.files))),
                self.model,
                img_size=self.img_size,
                device=device,
                engine=engine,
                precision=precision,
                batch_size=batch_size,
                tell=tell,
            )


def read_network(files: Sequence[Path], model: str | None = None, img_size: Sequence[int] | None = None) -> Network:
    """Read a checkpoint or an exported network.

    Args:
        files: Its file, and then those that lie beside it.
        model: Name of the network, where the checkpoint does not tell it.
        img_size: Side or (height, width) that images are scaled to; by default the checkpoint's.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As of ``load_classifier`` and ``read_about``.
    """
    path = files[0]
    if is_exported(path):
        if model is not None or img_size is not None:
            raise ValueError(f"{path} is an exported network: model and img_size were settled when it was exported")
        about = read_about(path)
        told, classes = about.preparation, len(about.classes)
    else:
        classifier = load_classifier(path, model, img_size)
        told, classes = classifier.preparation, len(classifier.classes)
    content = {file.name: np.fromfile(file, np.uint8) for file in files}
    return Network(content, model, None if img_size is None else tuple(img_size), told, classes)
