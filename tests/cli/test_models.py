"""``fastervit list`` and ``fastervit info``."""

import re
import sys

import pytest
import torch

import openfastervit
from openfastervit.models.fastervit import ALIASES
from tests.cli.conftest import Run


def test_list_shows_the_family(fastervit: Run, monkeypatch: pytest.MonkeyPatch):
    from openfastervit import benchmarking

    monkeypatch.setattr(benchmarking, "multiply_adds", lambda *_: 1)  # counted in the test below
    header, *rows = [line.split() for line in fastervit("list").out.splitlines()]
    assert header == ["name", "parameters", "multiply-adds", "size", "tag"]
    assert [row[0] for row in rows] == openfastervit.list_models()
    assert ["fastervit_6", "1360328872", "1", "224x224", "in1k"] in rows
    assert ["fastervit_4_w48_768", "271944224", "1", "768x768", "in21k_ft_in1k"] in rows


@pytest.mark.parametrize("pattern", ["_4_w24", "*w24*", "fastervit_4_w24_384"])
def test_list_takes_a_pattern(fastervit: Run, pattern: str):
    lines = fastervit("list", pattern).out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["fastervit_4_w24_384", "271944224", "126564897024", "384x384", "in21k_ft_in1k"]
    ]


def test_list_is_a_table_on_a_terminal(fastervit: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = fastervit("list", "fastervit_0").out
    assert "31.4 M" in out
    assert "3.49 G" in out
    assert "─" in out


def test_list_without_a_match(fails):
    fails("list", "vgg", says=["no network has a name like 'vgg'", "`fastervit list`"])


@pytest.mark.parametrize("command", [["list", "w24"], ["info", "fastervit_4_w24_384"]])
def test_weights_are_not_allocated(fastervit: Run, monkeypatch: pytest.MonkeyPatch, command: list[str]):
    devices = set()
    register = torch.nn.Module.register_parameter

    def watch(self, name, parameter):
        devices.update([] if parameter is None else [parameter.device.type])
        register(self, name, parameter)

    monkeypatch.setattr(torch.nn.Module, "register_parameter", watch)
    assert fastervit(*command).code == 0
    assert devices == {"meta"}


def table(out: str) -> dict[str, list[str]]:
    """Rows of the table of parts by name, cells split at two spaces."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    return {row[0]: row[1:] for row in rows if row[0].startswith(("stem", "stage", "head"))}


def test_info_at_the_trained_size(fastervit: Run):
    out = fastervit("info", "fastervit_0").out
    assert out.startswith("fastervit_0 at 224 x 224\n")
    assert table(out) == {
        "stem": ["64x56x56", "38,848"],
        "stage 0": ["2", "64x56x56", "148,224"],
        "stage 1": ["3", "128x28x28", "960,896"],
        "stage 2": ["6", "256x14x14", "7x7", "2x2", "4x4", "11,433,728"],
        "stage 3": ["5", "512x7x7", "7x7", "1x1", "18,309,120"],
        "head": ["1000", "514,024"],
    }
    assert "parameters     31,404,840\n" in out
    assert "multiply-adds  3,492,325,376 for one image\n" in out
    assert "weights        fastervit_0_224_1k.pth.tar of ahatamiz/FasterViT\n" in out
    assert "their licence  non-commercial\n" in out
    assert "code licence   Apache-2.0" in out


def test_info_shows_padding(fastervit: Run):
    outcome = fastervit("info", "fastervit_4", "--img-size", 480, 640)
    stage = table(outcome.out)["stage 2"]
    assert stage[1:-1] == ["784x30x40", "7x7", "5x6", "35x42", "10x12"]
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_info_fits_windows(fastervit: Run):
    stage = table(fastervit("info", "fastervit_0", "--img-size", 480, 640, "--windows", "fit").out)["stage 2"]
    (h, w), (n_h, n_w) = (map(int, cell.split("x")) for cell in stage[2:4])
    assert (h * n_h, w * n_w) == (30, 40)


def test_info_of_other_options(fastervit: Run):
    """A design without carriers, one without windows, and one that is not there."""
    out = fastervit("info", "fastervit_0", "--model-options.attention", "twins").out
    assert "weights        none were released" in out
    twins = table(out)["stage 2"]
    assert "7x7" in twins
    assert "4x4" not in twins
    edgevit = table(fastervit("info", "fastervit_0", "--model-options.attention", "edgevit").out)["stage 2"]
    assert "7x7" not in edgevit
    assert "swin" in fastervit("info", "fastervit_0", "--model-options.attention", "swin").err


@pytest.mark.parametrize("alias", ["faster_vit_0_224", "faster_vit_4_21k_384_any_res"])
def test_info_takes_the_released_names(fastervit: Run, alias: str):
    outcome = fastervit("info", alias)
    assert outcome.out.startswith(f"{ALIASES[alias]} at ")
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["fastervit_7"], ["unknown model 'fastervit_7'", "did you mean fastervit_", "`fastervit list`"]),
        (["resnet50"], ["unknown model 'resnet50'", "did you mean fastervit_"]),
        (["fastervit_0.in22k"], ["unknown tag 'in22k' of fastervit_0", "in1k"]),
        (["fastervit_0", "--img-size", "31"], ["img_size=31", "at least 32"]),
        (["fastervit_0", "--img-size", "224", "16"], ["img_size=[224, 16]", "at least 32"]),
        (["fastervit_0", "--img-size", "64", "64", "3"], ["img_size=[64, 64, 3]", "(height, width)"]),
    ],
)
def test_info_of_what_is_not(fails, args: list[str], says: list[str]):
    fails("info", *args, says=says)
