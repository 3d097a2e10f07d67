"""``fastervit list`` and ``fastervit info``."""

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from openfastervit import FasterViT
    from openfastervit.benchmarking import Part


def list_models(pattern: str = "*") -> int:
    """List the networks: parameters, multiply-adds, image size, tag of the released weights.

    Args:
        pattern: Part of a name, or a shell pattern such as 'fastervit_4_*'.
    """
    from rich.console import Console

    import openfastervit
    from openfastervit.benchmarking import multiply_adds
    from openfastervit.benchmarking.complexity import count_parameters

    names = openfastervit.list_models(pattern if any(mark in pattern for mark in "*?[") else f"*{pattern}*")
    if not names:
        raise ValueError(f"no network has a name like {pattern!r}; `fastervit list` shows all")
    on_terminal = sys.stdout.isatty()
    rows = []
    with Console(stderr=True).status("Counting") if sys.stderr.isatty() else contextlib.nullcontext():
        for name in names:
            model = _on_meta(name)
            height, width = model.img_size
            counts = count_parameters(model), multiply_adds(model, height, width)
            shown = [_short(count) if on_terminal else str(count) for count in counts]
            rows.append([name, *shown, f"{height}x{width}", str(_pretrained_cfg(model).get("tag") or "")])
    _print_table(["name", "parameters", "multiply-adds", "size", "tag"], rows, right=(1, 2))
    return 0


def info(
    name: str,
    *,
    img_size: list[int] | None = None,
    windows: Literal["pad", "fit"] = "pad",
    model_options: dict[str, Any] | None = None,
) -> int:
    """Show a network: its stages, what it costs at an image size, the licence of its weights.

    Args:
        name: Of the network; the released names (faster_vit_0_224) work too.
        img_size: Side, or height and width; by default the size it was trained at.
        windows: Keep the trained windows and pad the maps, or fit the windows to the maps.
        model_options: Of the network, as ``--model-options.attention twins`` or ``--model-options.carrier_levels 2``.
    """
    from openfastervit.benchmarking import summarise
    from openfastervit.models.factory import resolve_name
    from openfastervit.models.fastervit import ALIASES

    model = _on_meta(name, **(model_options or {}))
    model.set_input_size(None if img_size is None else img_size[0] if len(img_size) == 1 else img_size, windows=windows)
    height, width = model.img_size
    summary = summarise(model, height, width)
    print(f"{resolve_name(name)} at {height} x {width}\n")
    columns = ["part", "blocks", "output", "window", "windows", "padded to", "carriers", "parameters"]
    _print_aligned(columns, [_cells(part) for part in summary.parts], right=(1, 7))
    cfg = _pretrained_cfg(model)
    architecture = resolve_name(name).partition(".")[0]
    print()
    print(f"also called    {', '.join(alias for alias, network in ALIASES.items() if network == architecture)}")
    print(f"parameters     {summary.parameters:,}")
    print(f"multiply-adds  {summary.multiply_adds:,} for one image")
    if model_options:
        print("weights        none were released with other options")
    else:
        print(f"weights        {cfg.get('hf_hub_filename')} of {cfg.get('hf_hub_id')}")
        print(f"their licence  {cfg.get('license')}")
    print("code licence   Apache-2.0, which does not cover the weights")
    return 0


def _cells(part: "Part") -> list[str]:
    padded = None
    if part.window is not None and part.windows is not None:
        padded = tuple(side * count for side, count in zip(part.window, part.windows, strict=True))
    return [
        part.name,
        "" if part.blocks is None else str(part.blocks),
        _by(part.shape),
        _by(part.window),
        _by(part.windows),
        "" if padded == part.shape[1:] else _by(padded),
        _by(part.carriers),
        f"{part.parameters:,}",
    ]


def _by(sizes: tuple[int, ...] | None) -> str:
    return "" if sizes is None else "x".join(map(str, sizes))


def _short(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _on_meta(name: str, **options: Any) -> "FasterViT":
    """A network without storage for its weights."""
    import torch

    import openfastervit

    with torch.device("meta"):
        model = openfastervit.create_model(name, **options)
    assert isinstance(model, openfastervit.FasterViT)
    return model


def _pretrained_cfg(model: "FasterViT") -> dict[str, Any]:
    return getattr(model, "pretrained_cfg", {})  # timm's, set by its builder


def _print_table(columns: list[str], rows: list[list[str]], *, right: tuple[int, ...]) -> None:
    """A table for eyes on a terminal, aligned lines elsewhere; the columns ``right`` are aligned to the right."""
    if not sys.stdout.isatty():
        _print_aligned(columns, rows, right=right)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def _print_aligned(columns: list[str], rows: list[list[str]], *, right: tuple[int, ...]) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in [columns, *rows]:
        cells = [row[i].rjust(width) if i in right else row[i].ljust(width) for i, width in enumerate(widths)]
        print("  ".join(cells).rstrip())
