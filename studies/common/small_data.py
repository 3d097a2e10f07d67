"""A few images of each class, for the smallest scale: whatever is given as data, it ends within a minute or two."""

import shutil
from pathlib import Path

from openfastervit.atomic import write_directory


def few_images(data: Path, out: Path, *, train: int, val: int) -> Path:
    """Copy the first images of each class.

    Args:
        data: A folder with ``train/CLASS/`` and ``val/CLASS/``.
        out: Where the folder is made; one that is there already is taken.
        train: Images a class to learn from.
        val: Images a class to be judged on.

    Raises:
        ValueError: If ``data`` is no such folder.
    """
    for split in ("train", "val"):
        if not (data / split).is_dir():
            raise ValueError(f"--data {data} has no folder {split}/; give one with train/ and val/, a folder a class")
    target = out / f"few-images-{train}-{val}"

    def fill(folder: Path) -> None:
        for split, count in (("train", train), ("val", val)):
            for label in sorted(path for path in (data / split).iterdir() if path.is_dir()):
                (folder / split / label.name).mkdir(parents=True)
                for image in sorted(path for path in label.iterdir() if path.is_file())[:count]:
                    shutil.copyfile(image, folder / split / label.name / image.name)

    if not target.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_directory(target, fill)
    return target
