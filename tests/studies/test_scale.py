"""How fast images are read and classified: the parts at their smallest, and the table."""

from pathlib import Path

import pytest

from studies.common.table import read_table
from studies.scale import __main__ as scale
from studies.scale.measures import MEASURES, Case, steady
from tests.pocket import write_checkpoint, write_photos


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    write_photos(folder / "photos", 5)
    write_checkpoint(folder / "pocket.safetensors")
    return folder


def case(folder: Path, what: str, workers: int = 1) -> Case:
    return Case(what, workers, "cpu", "torch-folded", 4, folder / "pocket.safetensors", folder / "photos")


def test_the_rate_is_that_of_the_middle_of_a_run():
    slow_start = [(100.0, 10), *((100.0 + 0.5 * place, 10) for place in range(1, 10))]
    assert steady(slow_start) == pytest.approx(20)
    uneven = [(0.0, 1), (50.0, 1), (51.0, 2), (52.0, 4), (53.0, 1), (99.0, 1)]
    assert steady(uneven) == pytest.approx((9 - 2) / (53 - 50))
    with pytest.raises(ValueError, match=r"3 images in 1 parts are too few .* --images"):
        steady([(1.0, 3)])


@pytest.mark.parametrize("what", [what for what in MEASURES if what != "cluster"])
def test_each_part_has_a_rate(folder: Path, tmp_path: Path, what: str):
    scale.linked(folder / "photos", tmp_path / "images", 24)
    measured = case(folder, what)
    assert MEASURES[what](Case(**{**vars(measured), "images": tmp_path / "images"})) > 0


@pytest.mark.parametrize(("count", "named"), [(3, 3), (12, 5)])
def test_photographs_are_taken_evenly_or_again(folder: Path, tmp_path: Path, count: int, named: int):
    linked = scale.linked(folder / "photos", tmp_path / "images", count)
    links = sorted(linked.iterdir())
    assert len(links) == count
    assert len({link.resolve() for link in links}) == named


def test_the_table_compares_with_one_worker(folder: Path):
    rates = {
        case(folder, "cluster", 1): [10.0, 30.0, 20.0],
        case(folder, "cluster", 2): [36.0],
        case(folder, "decoding alone", 1): [100.0],
    }
    rows = scale.table(rates, {"cores": 2})
    assert [(row["images_per_second"], row["per_worker"], row["times_one_worker"]) for row in rows] == [
        ("20.00", "20.00", "1.00"),
        ("36.00", "18.00", "1.80"),
        ("100.00", "100.00", "1.00"),
    ]
    assert (rows[0]["lowest"], rows[0]["highest"], rows[0]["cores"]) == ("10.00", "30.00", 2)


@pytest.mark.slow  # it starts Ray
@pytest.mark.timeout(600)
def test_from_end_to_end(folder: Path, tmp_path: Path):
    args = ["--data", folder / "photos", "--checkpoint", folder / "pocket.safetensors", "--engine", "torch-folded"]
    args += ["--out", tmp_path / "scale.csv", "--images", 200, "--repeats", 1, "--batch-size", 4, "--workers", 1]
    assert scale.main([str(arg) for arg in args]) == 0
    rows = read_table(tmp_path / "scale.csv")
    assert [row["what"] for row in rows] == list(MEASURES)
    assert rows[0]["command"].startswith("python -m studies.scale --data photos --out scale.csv --checkpoint pocket")
