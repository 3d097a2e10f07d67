"""docs/plug-and-play.md: hierarchical attention in three networks of others, and what the page says of it."""

import ast
import copy
import csv
import functools
import inspect
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from openfastervit.benchmarking import multiply_adds
from openfastervit.layers import HierarchicalAttention
from openfastervit.layers.position import grid_geometry
from openfastervit.models.designs import DESIGNS
from studies.plug_and_play import hosts, overhead
from studies.plug_and_play.hosts import plug_into_resnet, plug_into_swin, plug_into_unet
from studies.plug_and_play.unet import UNet
from tests.conftest import REPOSITORY
from tests.docs.reader import blocks, commands

DOCUMENT = REPOSITORY / "docs" / "plug-and-play.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
RESULTS = REPOSITORY / "studies" / "results" / "plug_and_play_overhead.csv"


PLUGS = {"swin": plug_into_swin, "resnet": plug_into_resnet, "unet": plug_into_unet}


@functools.cache
def _built(name: str, plug: bool) -> nn.Module:
    torch.manual_seed(0)
    if plug:
        model = host(name)
        PLUGS[name](model)
        return model.eval()
    if name == "swin":
        return timm.create_model("swin_tiny_patch4_window7_224", strict_img_size=False, num_classes=10).eval()
    return timm.create_model("resnet50", num_classes=10).eval() if name == "resnet" else UNet(classes=2).eval()


def host(name: str) -> nn.Module:
    """A network of others, to keep."""
    return copy.deepcopy(_built(name, plug=False))


def plugged(name: str) -> nn.Module:
    """The same with hierarchical attention."""
    return copy.deepcopy(_built(name, plug=True))


def shows(block: str) -> bool:
    return "def plug_into_" in block


# --- The blocks are what the study measures -------------------------------------------------------------------------


def test_each_block_is_short() -> None:
    shown = [block for block in blocks(DOCUMENT, "python") if shows(block)]
    assert len(shown) == len(PLUGS)
    for block in shown:
        assert len([line for line in block.splitlines() if line.strip()]) < 15, block


def test_the_page_shows_what_is_measured() -> None:
    """Every function and class of hosts.py stands on the page, letter by letter, and no other does."""
    source = inspect.getsource(hosts)
    measured = {ast.get_source_segment(source, node) for node in ast.parse(source).body if hasattr(node, "body")}
    told = set()
    for block in filter(shows, blocks(DOCUMENT, "python")):
        told |= {ast.get_source_segment(block, node) for node in ast.parse(block).body if hasattr(node, "body")}
    assert told == measured
    assert {each.plug for each in overhead.HOSTS} == set(PLUGS.values())


# --- The hosts still work -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("swin", [(32, 32), (36, 100), (260, 68)]),
        ("resnet", [(32, 32), (33, 101), (150, 67)]),
        ("unet", [(16, 16), (17, 150), (97, 33)]),
    ],
)
def test_any_image_size(name: str, sizes: list[tuple[int, int]]) -> None:
    model = _built(name, plug=True)
    for size in sizes:
        with torch.no_grad():
            found = model(torch.randn(1, 3, *size))
        assert found.shape == ((1, 2, *size) if name == "unet" else (1, 10))
        assert found.isfinite().all()


@pytest.mark.parametrize("name", PLUGS)
def test_gradients_reach_all_parameters(name: str) -> None:
    """At a size at which the stages with carriers have more than one window; after a step, for one part starts at 0."""
    model = plugged(name)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(1, 3, 144, 144)
    for _ in range(2):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()
    dead = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert dead == []


@pytest.mark.parametrize("name", PLUGS)
def test_weights_of_the_host_stay(name: str) -> None:
    """Those loaded before the plugging are there after it; in two hosts they can be loaded after it as well."""
    model = host(name)
    weights = {key: torch.rand_like(value) for key, value in model.state_dict().items() if value.is_floating_point()}
    weights |= {key: value.clone() for key, value in model.state_dict().items() if key not in weights}
    model.load_state_dict(weights)
    PLUGS[name](model)
    after = model.state_dict()
    kept = {key for key in weights if key in after}
    assert all(torch.equal(after[key], weights[key]) for key in kept)
    if name == "swin":
        assert {key for key in weights if key not in kept} == {key for key in weights if ".blocks." in key}
    else:
        assert kept == set(weights)
        fresh = plugged(name)
        missing, unexpected = fresh.load_state_dict(weights, strict=False)
        assert unexpected == []
        assert set(missing) == set(after) - set(weights)
        assert all(torch.equal(fresh.state_dict()[key], weights[key]) for key in weights)


def test_weights_of_swins_blocks_stay() -> None:
    """Each tensor of Swin's blocks but the table of positions is in the window's layer under the same name."""
    model = host("swin")
    before = {key: value.clone() for key, value in model.state_dict().items() if ".blocks." in key}
    plug_into_swin(model)
    after = model.state_dict()
    for key, value in before.items():
        layer, number, name = re.fullmatch(r"layers\.(\d)\.blocks\.(\d)\.(.+)", key).groups()
        if name != "attn.relative_position_bias_table":
            assert torch.equal(after[f"layers.{layer}.blocks.1.blocks.{number}.window.{name}"], value)


def test_swins_weights_mean_the_same() -> None:
    """Without carriers and positions, what has taken a Swin block's weights computes what the block does."""
    block = host("swin").layers[1].blocks[0]
    nn.init.zeros_(block.attn.relative_position_bias_table)
    ours = HierarchicalAttention(192, 6, depth=1, hierarchical=False, without=("window_position", "window_bias")).eval()
    ours.blocks[0].window.load_state_dict(block.state_dict(), strict=False)
    x = torch.randn(2, 28, 28, 192)
    with torch.no_grad():
        torch.testing.assert_close(ours(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), block(x), rtol=1e-4, atol=1e-5)


def test_the_resnet_answers_as_before() -> None:
    model, x = host("resnet"), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        plug_into_resnet(model)
        assert torch.equal(model.eval()(x), before)


# --- The figures ----------------------------------------------------------------------------------------------------


def measured_rows() -> list[dict[str, str]]:
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table_after(marker: str) -> list[list[str]]:
    lines = TEXT.partition(f"<!-- {marker} -->")[2].lstrip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|--")]


def test_tables_are_what_was_measured() -> None:
    rows = measured_rows()
    assert [row["host"] for row in rows] == [each.name for each in overhead.HOSTS]
    for row in rows:
        parameters, parameters_with = int(row["parameters"]), int(row["parameters_plugged"])
        adds, adds_with = int(row["multiply_adds"]), int(row["multiply_adds_plugged"])
        assert table_after(f"studies/results/plug_and_play_overhead.csv: {row['host']}") == [
            [f"at {row['side']} x {row['side']}", "parameters", "multiply-adds", "time"],
            [row["host"], f"{parameters / 1e6:.1f} M", f"{adds / 1e9:.2f} G", f"{float(row['ms']):.0f} ms"],
            [
                "with hierarchical attention",
                f"{parameters_with / 1e6:.1f} M",
                f"{adds_with / 1e9:.2f} G",
                f"{float(row['ms_plugged']):.0f} ms",
            ],
            [
                "ratio",
                f"{parameters_with / parameters:.2f}",
                f"{adds_with / adds:.2f}",
                "{:.2f} ({:.2f} to {:.2f})".format(*(float(row[f"time_ratio{end}"]) for end in ("", "_q1", "_q3"))),
            ],
        ]
        assert row["processor"]
        assert row["torch"]
    (command,) = commands(DOCUMENT)
    assert {row["command"] for row in rows} == {command.replace("plug_and_play_overhead.csv", "OUT.csv")}


@pytest.mark.parametrize("measured", overhead.HOSTS, ids=lambda measured: measured.name)
def test_what_is_counted_in_the_table_can_be_counted_again(measured: overhead.Host) -> None:
    row = next(row for row in measured_rows() if row["host"] == measured.name)
    model = measured.build().eval()
    for suffix in ("", "_plugged"):
        if suffix:
            measured.plug(model)
        assert int(row[f"parameters{suffix}"]) == sum(parameter.numel() for parameter in model.parameters())
        assert int(row[f"multiply_adds{suffix}"]) == multiply_adds(model, measured.side, measured.side)


def test_the_study_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tuple(replace(each, side=32) for each in overhead.HOSTS if each.name == "U-Net")
    monkeypatch.setattr(overhead, "HOSTS", small)
    monkeypatch.setattr(overhead, "warm_up", lambda call: call())
    assert overhead.main(["--out", str(tmp_path / "new" / "overhead.csv"), "--turns", "2"]) == 0
    with (tmp_path / "new" / "overhead.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == list(measured_rows()[0])
    assert float(row["time_ratio_q1"]) <= float(row["time_ratio"]) <= float(row["time_ratio_q3"])
    assert row["command"].endswith("--turns 2")
    with pytest.raises(SystemExit):
        overhead.main(["--out", str(tmp_path / "other.csv"), "--turns", "0"])


# --- What the page says ---------------------------------------------------------------------------------------------


def change(**options) -> float:
    """By how much of its norm a new stage of 512 channels changes a map of standard normal values."""
    x = torch.randn(1, 512, 28, 28)
    with torch.no_grad():
        return float((HierarchicalAttention(512, 16, **options).eval()(x) - x).norm() / x.norm())


def test_how_a_stage_starts() -> None:
    assert change() == pytest.approx(1 / 3, abs=0.02)
    assert 0.001 < change(layer_scale=1e-5) < 0.01
    assert change(layer_scale=1e-5, without=("window_position",)) < 0.00001


def test_windows_hear_little_of_carriers_at_the_start() -> None:
    layer = HierarchicalAttention(64, 2).eval().blocks[0].window
    bias = layer.bias(grid_geometry(7, 7, torch.float32, torch.device("cpu")), 4)
    assert bias[:, 4:, 4:].sub(8).abs().max() < 0.2
    assert not bias[:, :4].any()
    assert not bias[:, :, :4].any()
    weights = layer.attn.weights(torch.randn(1, 53, 64), bias)
    ratio = (weights[..., 4:, :4].mean() / weights[..., 4:, 4:].mean()).item()
    assert ratio == pytest.approx(math.exp(-8), rel=0.2)
    assert 1 / ratio == pytest.approx(3000, rel=0.2)


def test_growth_is_as_said() -> None:
    def count(side: int, levels: int) -> int:
        with torch.device("meta"):
            stage, x = HierarchicalAttention(64, 2, carrier_levels=levels), torch.empty(1, 64, side, side)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            stage(x)
        return counter.get_total_flops()

    def exponent(side: int, levels: int) -> float:
        return math.log(count(4 * side, levels) / count(side, levels), 16)

    assert exponent(112, 2) == pytest.approx(1, abs=0.01)
    assert exponent(112, 1) > 1.3
    said = re.search(r"from 448 x 448 to 1792 x 1792 the power is (\d\.\d+)", TEXT.replace("\n  ", " "))
    assert said is not None
    assert f"{exponent(448, 2):.2f}" == said[1]
    for side in (14, 28):
        assert count(side, 2) == pytest.approx(count(side, 1), rel=0.01)


def test_a_map_of_one_window_or_less_has_no_carriers() -> None:
    stage = HierarchicalAttention(8, 2).eval()
    nn.init.constant_(stage.carrier_init.conv.weight, float("nan"))
    with torch.no_grad():
        for size in ((7, 7), (3, 5), (1, 1)):
            assert stage(torch.randn(1, 8, *size)).isfinite().all()
        assert stage(torch.randn(1, 8, 8, 7)).isnan().any()


def test_options_do_as_said() -> None:
    stage = HierarchicalAttention(8, 2, window_size=7)
    keys = list(stage.state_dict())
    stage.set_window_size((8, 10))
    assert stage.window_size == (8, 10)
    assert list(stage.state_dict()) == keys
    x = F.pad(torch.randn(1, 8, 4, 7), (0, 0, 0, 3))  # three rows of zeros, as padding would give
    padded, masked = HierarchicalAttention(8, 2), HierarchicalAttention(8, 2, mask_padding=True)
    masked.load_state_dict(padded.state_dict())
    with torch.no_grad():
        assert torch.allclose(padded(x[:, :, :4]), padded(x)[:, :, :4], atol=1e-6)
        assert not torch.allclose(masked(x[:, :, :4]), padded(x[:, :, :4]), atol=1e-6)


REFUSED = re.findall(r"(?m)^- `(HierarchicalAttention\(.+)`: ", TEXT)


@pytest.mark.parametrize("call", REFUSED)
def test_what_is_refused(call: str) -> None:
    names = {"HierarchicalAttention": HierarchicalAttention, "torch": torch}
    with pytest.raises(ValueError, match=r"=|expected a map") as caught:
        eval(call, names)
    argument = re.search(r"(\w+)=", call.removesuffix(")"))
    wanted = "expected a map" if "torch.zeros" in call else argument[1] if argument else "num_heads"
    assert wanted in str(caught.value)


def test_refusals_are_listed() -> None:
    assert len(REFUSED) == 10


def test_all_designs_are_listed() -> None:
    rows = re.findall(r"(?m)^\| `([a-z-]+)` \|.+\| \[(\w+\.py)\]", TEXT)
    assert [name for name, _ in rows] == list(DESIGNS)
