"""A reader of the documentation, who types what it says, on a small machine and with little data."""

import json
import re
import shlex
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.pocket import picture
from tests.shapes import BACKBONE, RCNN, UPERNET, write_coco, write_semantic

SHORT = [
    *("--epochs", "1", "--cooldown-epochs", "0", "--warmup-epochs", "0", "--batch-size", "4", "--accumulate", "1"),
    *("--img-size", "128", "--workers", "0", "--device", "cpu", "--no-pretrained", "--model-options"),
    json.dumps({"dim": 8, "stem_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 4]}),
]
"""What makes any training take a moment; the options that come last count."""


_DENSE = [
    *("--epochs", "1", "--warmup-epochs", "0.5", "--batch-size", "2", "--accumulate", "1", "--workers", "0"),
    *("--device", "cpu", "--no-pretrained", "--model-options", json.dumps(BACKBONE), "--drop-path", "0"),
]
SHORT_OF = {
    "detect": [
        *_DENSE,
        *("--min-sizes", "96", "--max-size", "160", "--schedule", "cosine", "--head-options", json.dumps(RCNN)),
    ],
    "segment": [
        *_DENSE,
        *("--crop-size", "64", "--train-size", "64", "--eval-size", "64", "--head-options", json.dumps(UPERNET)),
    ],
}
"""The same for the other tasks."""
DETR = {"d_model": 32, "num_queries": 20, "decoder_layers": 1, "encoder_hidden_dim": 32}
"""Head options of a small RT-DETR or D-FINE."""


def blocks(document: Path, language: str) -> list[str]:
    """The blocks of a language, as they stand."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", document.read_text(encoding="utf-8"))


def commands(document: Path) -> list[str]:
    """The commands, without comments; those that go on after a backslash on one line."""
    text = "\n".join(blocks(document, "sh")).replace("\\\n", " ")
    lines = [line.split(" #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def shortened(command: str) -> str:
    """A command with training or measuring cut short."""
    words = command.split()
    if words[:2] == ["fastervit", "benchmark"]:
        return f"{command} --repeats 2 --seconds 0.1"
    if len(words) > 2 and words[1] in SHORT_OF and words[2] == "train" and "--resume" not in words:
        short = SHORT_OF[words[1]]
        if "rt-detr" in words:
            short = [*short[:-1], json.dumps(DETR)]
        return f"{command} {shlex.join(short)}"
    trains = re.search(r"\b(train|finetune) ", command) and not re.search(" --(resume|print-config)", command)
    return f"{command} {shlex.join(SHORT)}" if trains else command


def write_photos(folder: Path, classes: tuple[str, str] = ("cat", "dog")) -> None:
    """Two classes of synthetic photographs: train and val."""
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for image in range(count):
                picture(10 * number + image).save(folder / split / name / f"{image}.jpg")


def settle(folder: Path) -> None:
    """Give a folder what the documents on training speak of."""
    write_photos(folder / "photos")
    write_coco(folder / "coco")
    write_semantic(folder / "scenes")
    for name in ("imagenet", "imagenet-21k", "imagenet-a", "imagenet-r", "imagenetv2-matched-frequency"):
        write_photos(folder / name, ("n01440764", "n02102040"))
    (folder / "recipes").symlink_to(REPOSITORY / "recipes")
