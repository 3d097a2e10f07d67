"""``fastervit explain``."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openfastervit_cli.parser import report_error

if TYPE_CHECKING:
    from openfastervit.inference import Preparation
    from openfastervit.models import FasterViT


def explain(
    input: Path,
    *,
    checkpoint: Path,
    model: str | None = None,
    class_: str | None = None,
    stage: int = 3,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    img_size: list[int] | None = None,
) -> int:
    """Draw what a network looks at in an image, or in all images of a folder.

    The picture shows the image as the network sees it, the likeliest classes, Grad-CAM of one class, the attention
    inside windows, and what some carrier tokens look at. The name of each picture is printed. An image that cannot be
    read is named on stderr and has no picture; the others go on, and the exit code is 3.

    Args:
        input: An image, or a folder: all images in it and its subfolders.
        checkpoint: Weights of a FasterViT, as safetensors or torch file, in any layout.
        model: Name of the network, where the checkpoint does not tell it.
        class_: The class to look for, by its name or its number; by default the likeliest.
        stage: The stage whose map Grad-CAM is on, 0 to 3; earlier ones are finer, and say less of the class.
        out: The picture, .png; of a folder, a folder for the pictures. By default explanation.png or explanations.
        overwrite: Replace pictures that are there.
        device: cpu, cuda, cuda:1, mps; auto takes the best there is.
        img_size: Side, or height and width, that images are scaled to; by default the checkpoint's.
    """
    folder = input.is_dir()
    out = out or Path("explanations" if folder else "explanation.png")
    _check_out(out, folder)
    if not 0 <= stage <= 3:
        raise ValueError(f"--stage {stage} is none of the network's; choose from 0 to 3")
    from openfastervit.atomic import write_atomically
    from openfastervit.data.images import ImageError, find_images
    from openfastervit.inference import explain as looking
    from openfastervit.inference.explain.picture import draw, require_matplotlib
    from openfastervit.inference.predictor import find_device

    require_matplotlib()
    images = find_images(input)
    pictures = [out / f"{image.relative_to(input)}.png" for image in images] if folder else [out]
    there = [picture for picture in pictures if picture.exists()]
    if there and not overwrite:
        raise ValueError(f"{there[0]} is there already; give another --out, or --overwrite")
    where = find_device(device)
    network, classes, preparation = _load(checkpoint, model, img_size)
    target = None if class_ is None else find_class(class_, classes)
    network.to(where)
    failed = 0
    for image, picture in zip(images, pictures, strict=True):
        pixels = preparation.load(image)
        if isinstance(pixels, ImageError):
            report_error(f"{image}: {pixels}")
            failed += 1
            continue
        prepared = preparation.normalised([pixels], where)
        told = looking.explain(network, prepared, pixels, classes, target=target, stage=stage)
        content = draw(told, image.name)
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(picture, content)
        print(picture, flush=True)
    if failed and len(images) > 1:
        report_error(f"{failed} of {len(images)} images could not be read; pictures of the others in {out}")
    return 3 if failed else 0


def _check_out(out: Path, folder: bool) -> None:
    """Raise ``ValueError`` where pictures cannot go to ``out``."""
    if folder and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder, one for the pictures of all images")
    if not folder and out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file in it, such as {out / 'explanation.png'}")
    if not folder and out.suffix.lower() != ".png":
        raise ValueError(f"--out {out} does not end in .png, which the picture is; name it {out.with_suffix('.png')}")


def _load(
    checkpoint: Path, model: str | None, img_size: Sequence[int] | None
) -> "tuple[FasterViT, tuple[str, ...], Preparation]":
    """A FasterViT, the names of its classes, and how images are prepared."""
    from openfastervit.inference import Preparation, load_classifier
    from openfastervit.inference.exported import is_exported
    from openfastervit.models import FasterViT

    if is_exported(checkpoint):
        raise ValueError(f"{checkpoint} is an exported network, which cannot be looked into; give its checkpoint")
    network, classes, told = load_classifier(checkpoint, model, img_size)
    if not isinstance(network, FasterViT):
        what = f"{checkpoint} holds a {type(network).__name__}; what is looked at is a FasterViT"
        raise ValueError(what)  # noqa: TRY004  no bug, but a file that the user gave
    try:
        return network, classes, Preparation.of(told)
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error


def find_class(asked: str, classes: Sequence[str]) -> int:
    """The place of a class: by its name, one of its names where commas divide several, or its number.

    Raises:
        ValueError: If there is none, or more than one.
    """
    for fits in (
        lambda name: name == asked,
        lambda name: name.lower() == asked.lower(),
        lambda name: asked.lower() in [part.strip().lower() for part in name.split(",")],
    ):
        found = [index for index, name in enumerate(classes) if fits(name)]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = ", ".join(map(str, found))
            raise ValueError(f"--class {asked} is the name of {len(found)} classes; give a number of {numbers}")
    if asked.isdecimal() and int(asked) < len(classes):
        return int(asked)
    near = difflib.get_close_matches(asked, classes, n=1)
    mend = f"did you mean {near[0]}?" if near else f"give a name, or a number from 0 to {len(classes) - 1}"
    raise ValueError(f"--class {asked} is none of the network's {len(classes)} classes; {mend}")
