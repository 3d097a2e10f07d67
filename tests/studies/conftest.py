"""Photographs that are none, for studies: two classes that can be told apart."""

from pathlib import Path

import pytest

from tests.pocket import picture


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 40), ("val", 6)):
        for label in range(2):
            (folder / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                photo = picture(1000 * label + number, (64, 64))
                photo.save(folder / split / f"class{label}" / f"{number}.jpg")
    return folder
