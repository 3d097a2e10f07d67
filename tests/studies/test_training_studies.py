"""The studies that train, each from end to end at its smallest, and what their tables say."""

import csv
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from torch import nn

import studies.attention_designs.__main__ as attention_designs
import studies.hat_parts.__main__ as hat_parts
import studies.plug_and_play.__main__ as plug_and_play
import studies.pretrain_finetune.__main__ as pretrain_finetune
from openfastervit import FasterViT, create_model
from openfastervit.benchmarking import multiply_adds
from openfastervit.benchmarking.measure import Plan
from openfastervit.tasks.classification import build_network
from studies.attention_designs import throughput
from studies.attention_designs.designs import DESIGNS, PAPER
from studies.common.comparison import Variant
from studies.common.runs import Run
from studies.hat_parts.parts import SCALES as PARTS_SCALES
from studies.hat_parts.parts import VARIANTS as PARTS

HARDWARE = ("processor", "cores", "gpus", "python", "torch", "timm", "openfastervit", "revision", "command", "scale")


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with Image.open(out / "results.png") as plot:
        assert plot.width > 500
    for row in rows:
        assert all(row[name] for name in HARDWARE), row
        assert row["scale"] == "smoke"
        assert row["failed"] == ""
    return rows


def arguments(photos: Path, out: Path, *seeds: int) -> list[str]:
    found = ["--scale", "smoke", "--data", str(photos), "--out", str(out), "--device", "cpu"]
    return [*found, "--seeds", *map(str, seeds)]


def heard(network: nn.Module) -> nn.Module:
    """In float64, with linear weights ten times as large: at first they are so small that attention is hardly heard."""
    network = network.double().eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.weight *= 10
    return network


# --- Designs


def test_attention_designs(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoke = throughput.SPEEDS["smoke"]
    quick = throughput.Speed("fp32", 1, Plan(repeats=2, seconds=0.001, tail=False), smoke.released)
    monkeypatch.setitem(throughput.SPEEDS, "smoke", quick)
    asked = [*arguments(photos, tmp_path, 0), "--threads", "1"]
    assert attention_designs.main(asked) == 0
    rows = rows_of(tmp_path)
    assert [row["variant"] for row in rows] == list(DESIGNS)
    for row in rows:
        recipe = yaml.safe_load((tmp_path / f"{row['variant']}-seed0" / "recipe.yaml").read_text())
        assert recipe["model_options"].pop("attention") == row["variant"]
        assert recipe["model_options"] == attention_designs.SCALES["smoke"].settings["model_options"]
        assert row["compared_with"] == ("" if row["variant"] == "hat" else "hat")
        for prefix in ("", "fastervit_0_"):
            low, rate, high = (float(row[f"{prefix}images_per_second{part}"]) for part in ("_q1", "", "_q3"))
            assert 0 < low <= rate <= high
            assert row[f"{prefix}measured"] == "ok"
        assert (row["repeats"], row["threads"], row["engine"]) == ("2", "1", "torch-eager")
        assert int(row["parameters"]) > 0
    told = {row["variant"]: (row["paper_top1"], row["paper_images_per_second"]) for row in rows}
    assert {design: tuple(map(float, told[design])) for design in PAPER} == PAPER
    assert told["window"] == ("", "")

    kept = (tmp_path / "throughput.csv").read_bytes()
    assert attention_designs.main(asked) == 0, "what is done is not done again"
    assert (kept, rows) == ((tmp_path / "throughput.csv").read_bytes(), rows_of(tmp_path))


def test_the_designs_are_the_issues() -> None:
    """The pocket network with each, at the size of the study: the same but for the mixer of stage 2."""
    options = attention_designs.SCALES["cpu"].settings["model_options"]
    networks = {design: create_model("fastervit_0", **options, attention=design, num_classes=10) for design in DESIGNS}
    outside = {
        design: {name for name, _ in network.named_parameters() if not name.startswith("stages.2.attention.")}
        for design, network in networks.items()
    }
    assert all(names == outside["hat"] for names in outside.values())
    kinds = {type(network.stages[2].attention).__name__ for network in networks.values()}
    assert len(kinds) >= len(DESIGNS) - 1, "hat without carriers is plain windows"


# --- Parts


def part(name: str) -> Variant:
    return next(variant for variant in PARTS if variant.name == name)


def network_of(name: str, scale: str = "cpu") -> FasterViT:
    settings = dict(PARTS_SCALES[scale].settings)
    own = dict(part(name).settings)
    settings["model_options"] = {**settings["model_options"], **own.pop("model_options", {})}
    recipe = Run(name, 0, str(PARTS_SCALES[scale].recipe), {**settings, **own}).resolved()
    torch.manual_seed(0)
    network = build_network(recipe, 10)
    assert isinstance(network, FasterViT)
    return network.eval()


def test_hat_parts(photos: Path, tmp_path: Path) -> None:
    assert hat_parts.main(arguments(photos, tmp_path, 0)) == 0
    rows = rows_of(tmp_path)
    names = [row["variant"] for row in rows]
    assert names == [variant.name for variant in PARTS]
    for row in rows:
        assert row["change"]
        assert row["compared_with"] in names or row["variant"] == "hat"


@pytest.mark.parametrize("variant", [variant for variant in PARTS if variant.compared_with], ids=lambda part: part.name)
def test_each_part_differs_from_what_it_is_compared_with_in_one_thing(variant: Variant) -> None:
    assert variant.compared_with is not None
    base = part(variant.compared_with)
    own, others = variant.settings["model_options"], base.settings["model_options"]
    differing = {name for name in {*own, *others} if own.get(name) != others.get(name)}
    if variant.settings["windows"] != base.settings["windows"]:
        differing.add("windows")
    if variant.name in ("plain-7", "plain-14"):
        differing.remove("mask_padding")  # the base has no padding that could be masked
    assert len(differing) == 1


def test_where_the_side_divides_the_window_both_poolings_are_the_same() -> None:
    """Hence aligned pooling is compared where 3 x 3 carriers stand in windows of 4."""
    image = torch.randn(2, 3, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def logits(**more: object) -> torch.Tensor:
        torch.manual_seed(0)
        options = PARTS_SCALES["cpu"].settings["model_options"]
        with torch.no_grad():
            return heard(create_model("fastervit_0", **{**options, **more}))(image)

    torch.testing.assert_close(logits(), logits(carrier_pooling="aligned"))
    with torch.no_grad():
        assert not torch.allclose(heard(network_of("carriers-3x3"))(image), heard(network_of("aligned"))(image))


def test_windows_of_the_parts() -> None:
    windows = {variant.name: network_of(variant.name).stages[2].attention.window_size for variant in PARTS}
    sides = {"window-5": 5, "window-5-masked": 5, "plain-7": 7, "plain-14": 14}
    assert windows == {name: (sides.get(name, 4),) * 2 for name in windows}, "window-5-fit has windows of 4"
    image = torch.randn(1, 3, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = {
            name: heard(network_of(name))(image) for name in ("hat", "window-5", "window-5-fit", "window-5-masked")
        }
    torch.testing.assert_close(logits["window-5-fit"], logits["hat"])
    assert not torch.allclose(logits["window-5"], logits["window-5-masked"])


# --- Plug and play


def test_plug_and_play(photos: Path, tmp_path: Path) -> None:
    assert plug_and_play.main(arguments(photos, tmp_path, 0)) == 0
    swin, hat, wide = rows_of(tmp_path)
    assert [row["variant"] for row in (swin, hat, wide)] == ["swin", "swin-hat", "swin-wide"]
    assert [row["compared_with"] for row in (swin, hat, wide)] == ["", "swin", "swin-hat"]
    recipes = [
        yaml.safe_load((tmp_path / f"{name}-seed0" / "recipe.yaml").read_text()) for name in ("swin", "swin-hat")
    ]
    assert {name for name in recipes[0] if recipes[0][name] != recipes[1][name]} == {"model"}


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_the_wide_swin_costs_what_the_one_with_carriers_costs(scale: str) -> None:
    costs = {}
    for variant in plug_and_play.variants(scale):
        settings = {
            **plug_and_play.SCALES[scale].settings["model_options"],
            **variant.settings.get("model_options", {}),
        }
        with torch.device("meta"):
            network = timm.create_model(variant.settings["model"], **settings, num_classes=10)
        costs[variant.name] = multiply_adds(network, 128, 128, batch=64)
    assert costs["swin-wide"] == pytest.approx(costs["swin-hat"], rel=0.04)
    assert costs["swin"] < 0.75 * costs["swin-hat"]


def test_swin_hears_of_other_windows_through_carriers_at_once() -> None:
    """In the first stage of Swin-T, of one pair of blocks, a token reaches two windows; with carriers, all."""
    options = plug_and_play.SCALES["cpu"].settings["model_options"]
    reached = {}
    for name in (plug_and_play.SWIN, plug_and_play.SWIN_HAT):
        torch.manual_seed(0)
        network = heard(timm.create_model(name, **options, num_classes=10))
        image = torch.randn(1, 3, 128, 128, dtype=torch.float64)
        other = image.clone()
        other[..., :4, :4] += 1  # the first patch
        with torch.no_grad():
            maps = [network.layers[0](network.patch_embed(pixels)) for pixels in (image, other)]
        assert maps[0].shape == (1, 32, 32, 18)
        reached[name] = (maps[0] != maps[1]).any(-1).float().mean().item()
    assert reached[plug_and_play.SWIN] < 0.1
    assert reached[plug_and_play.SWIN_HAT] == 1


def test_every_parameter_of_swin_with_carriers_learns() -> None:
    options = plug_and_play.SCALES["cpu"].settings["model_options"]
    network = timm.create_model(plug_and_play.SWIN_HAT, **options, num_classes=10)
    network(torch.randn(2, 3, 128, 128)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    with pytest.raises(ValueError, match="no released weights"):
        timm.create_model(plug_and_play.SWIN_HAT, pretrained=True)


# --- Pre-training


def test_pretrain_finetune(photos: Path, tmp_path: Path) -> None:
    asked = arguments(photos, tmp_path, 0)
    assert pretrain_finetune.main(asked) == 0
    rows = {row["variant"]: row for row in rows_of(tmp_path)}
    assert list(rows) == ["pretrain", "finetune", "scratch"]
    assert [row["img_size"] for row in rows.values()] == ["96", "128", "128"]
    for row in rows.values():
        assert int(row["cost_multiply_adds"]) == int(row["images_seen"]) * int(row["multiply_adds_in_64"])
    totals = {name: int(row["total_multiply_adds"]) for name, row in rows.items()}
    assert totals["finetune"] == totals["pretrain"] + int(rows["finetune"]["cost_multiply_adds"])
    recipes = {name: yaml.safe_load((tmp_path / f"{name}-seed0" / "recipe.yaml").read_text()) for name in rows}
    assert recipes["finetune"]["weights"] == str(tmp_path / "pretrain-seed0" / "last.safetensors")
    assert recipes["finetune"]["lr"] == recipes["scratch"]["lr"] / 2
    assert recipes["scratch"]["weights"] is None

    written = (tmp_path / "finetune-seed0" / "last.safetensors").stat().st_mtime_ns
    assert pretrain_finetune.main(asked) == 0
    assert written == (tmp_path / "finetune-seed0" / "last.safetensors").stat().st_mtime_ns


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_both_ways_cost_the_same(scale: str) -> None:
    lengths = pretrain_finetune.LENGTHS[scale]
    cost = {}
    for side in (96, 128):
        with torch.device("meta"):
            network = create_model("fastervit_0", **pretrain_finetune.SCALES[scale].settings["model_options"])
        network.set_input_size(side, "fit")
        cost[side] = multiply_adds(network, side, side, batch=64)
        assert [network.stages[i].attention.window_size for i in (2, 3)] == [(side // 32, side // 32)] * 2, "no padding"
    small_first = lengths.pretrain * cost[96] + lengths.finetune * cost[128]
    assert small_first == pytest.approx(lengths.scratch * cost[128], rel=0.03)
