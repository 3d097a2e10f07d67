"""Which image stands where, and that its augmentation follows from its place alone."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from openfastervit.data.images import ImageError
from openfastervit.data.loader import (
    SUBSTITUTES,
    EvaluationOrder,
    LabelledImages,
    Place,
    Sample,
    TrainingOrder,
    close,
    create_loader,
    seed_everything,
)
from openfastervit.data.transforms import create_training_transform
from tests.pocket import picture


class Pictures:
    """A source that draws its images; those whose number is in ``broken`` cannot be read."""

    def __init__(self, count: int, broken: Sequence[int] = ()) -> None:
        self.labels = [number % 3 for number in range(count)]
        self.classes = ("a", "b", "c")
        self.broken = set(broken)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"{index}.jpg"

    def open(self, index: int) -> Image.Image:
        if index in self.broken:
            raise ImageError("the file is empty")
        return picture(index, size=(48, 40))


def heavy() -> Any:
    """A transform that draws from all three generators."""
    return create_training_transform(
        (3, 32, 32),
        scale=(0.08, 1.0),
        ratio=(0.75, 1.33),
        hflip=0.5,
        vflip=0.5,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="random",
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        re_prob=0.5,
        re_mode="pixel",
    )


def collate(samples: Sequence[Sample]) -> tuple[list[str], Tensor]:
    return [sample.name for sample in samples], torch.stack([sample.image for sample in samples])


# --- The order of training --------------------------------------------------------------------------------------------

SIZES = {
    "images": st.integers(1, 200),
    "batch": st.integers(1, 9),
    "processes": st.integers(1, 5),
    "multiple": st.integers(1, 3),
    "repeats": st.integers(1, 4),
    "seed": st.integers(0, 2**32),
}


@settings(max_examples=200)
@given(**SIZES, epochs=st.integers(1, 3))
def test_processes_share_the_order_that_one_would_take(
    images: int, batch: int, processes: int, multiple: int, repeats: int, seed: int, epochs: int
) -> None:
    common = {"multiple": multiple, "repeats": repeats, "seed": seed, "epochs": epochs}
    alone = TrainingOrder(images, batch * processes, **common)
    orders = [
        TrainingOrder(images, batch, processes=processes, process=process, **common) for process in range(processes)
    ]
    shares = [list(order) for order in orders]
    assert {len(share) for share in shares} == {len(alone)} == {len(order) for order in orders}
    assert alone.batches % multiple == 0
    assert alone.batches == images // (batch * processes) // multiple * multiple
    for whole, *parts in zip(alone, *shares, strict=True):
        together = [place for part in parts for place in part]
        assert {len(part) for part in parts} == {batch}
        assert sorted(together, key=lambda place: place.position) == whole


@settings(max_examples=200)
@given(images=st.integers(1, 200), repeats=st.integers(1, 4), seed=st.integers(0, 2**32), epoch=st.integers(0, 5))
def test_an_epoch_takes_each_image_as_often_as_asked(images: int, repeats: int, seed: int, epoch: int) -> None:
    order = TrainingOrder(images, 1, repeats=repeats, seed=seed, epochs=epoch + 1)
    order.begin(epoch)
    places = [place for (place,) in order]
    assert [place.position for place in places] == list(range(images))
    assert {place.epoch for place in places} == {epoch}
    times = Counter(place.index for place in places)
    assert len(times) == -(-images // repeats)
    assert sorted(times.values())[1:] == [repeats] * (len(times) - 1)  # the last one may come to its end early
    assert all(times[place.index] == repeats for place in places[: images // repeats * repeats])
    for start in range(0, images, repeats):
        assert len({place.index for place in places[start : start + repeats]}) == 1


@settings(max_examples=200)
@given(**SIZES, epochs=st.integers(1, 3), data=st.data())
def test_going_on_takes_what_is_left(
    images: int, batch: int, processes: int, multiple: int, repeats: int, seed: int, epochs: int, data: st.DataObject
) -> None:
    order = TrainingOrder(
        images, batch, processes=processes, multiple=multiple, repeats=repeats, seed=seed, epochs=epochs
    )
    everything = list(order)
    epoch = data.draw(st.integers(0, epochs - 1))
    done = data.draw(st.integers(0, order.batches))
    order.begin(epoch, done)
    assert list(order) == everything[epoch * order.batches + done :]
    assert len(order) == len(everything) - epoch * order.batches - done


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        order = TrainingOrder(50, 1, seed=seed, epochs=number + 1)
        order.begin(number)
        return [place.index for (place,) in order]

    orders = [epoch(seed, number) for seed in range(3) for number in range(3)]
    assert len(set(map(tuple, orders))) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)


# --- The order of evaluation ------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(images=st.integers(0, 100), batch=st.integers(1, 9), processes=st.integers(1, 7))
def test_evaluation_takes_each_image_once(images: int, batch: int, processes: int) -> None:
    orders = [EvaluationOrder(images, batch, processes=processes, process=process) for process in range(processes)]
    shares = [list(order) for order in orders]
    assert sorted(place.index for share in shares for part in share for place in part) == list(range(images))
    assert [len(share) for share in shares] == [len(order) for order in orders]
    assert {order.most for order in orders} == {max(map(len, shares))}
    assert all(0 < len(part) <= batch for share in shares for part in share)


# --- Samples ----------------------------------------------------------------------------------------------------------


def batches(workers: int, images: LabelledImages, order: TrainingOrder) -> list[tuple[list[str], Tensor]]:
    iterator = iter(create_loader(images, order, collate, workers=workers))
    try:
        return list(iterator)
    finally:
        close(iterator)


def test_a_sample_follows_from_its_place_alone() -> None:
    """Not from workers, other samples, where it began, or what the training itself draws."""
    images = LabelledImages(Pictures(12), heavy(), seed=5, training=True)
    order = TrainingOrder(12, 4, repeats=2, seed=5, epochs=2)
    reference = batches(0, images, order)
    assert len(reference) == 6
    first, twin = reference[0][1][:2]
    assert reference[0][0][0] == reference[0][0][1]
    assert not torch.equal(first, twin)  # one image twice, each time in another way
    seed_everything("something", "else")
    order.begin(1, 1)
    for workers in (0, 1, 2):
        for (names, found), (wanted_names, wanted) in zip(batches(workers, images, order), reference[4:], strict=True):
            assert names == wanted_names
            assert torch.equal(found, wanted)
    other = LabelledImages(Pictures(12), heavy(), seed=6, training=True)
    assert not torch.equal(other[Place(0, 0, 0)].image, images[Place(0, 0, 0)].image)


def test_samples_leave_the_generators_of_the_training_alone() -> None:
    images = LabelledImages(Pictures(3), heavy(), training=True)

    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()

    seed_everything("x")
    wanted = draw()
    seed_everything("x")
    assert images[Place(1, 0, 0)].image.shape == (3, 32, 32)
    assert draw() == wanted
    seed_everything("y")
    assert all(one != other for one, other in zip(draw(), wanted, strict=True))


def test_what_cannot_be_read_gives_way_in_training_alone() -> None:
    source = Pictures(9, broken=range(0, 9, 2))
    training = LabelledImages(source, heavy(), training=True)
    found = Counter()
    for position in range(40):
        sample = training[Place(4, 0, position)]
        assert sample.image.shape == (3, 32, 32)
        index = int(sample.name.removesuffix(".jpg"))
        assert index not in source.broken
        assert sample.target == source.labels[index]
        assert sample.unreadable[0] == ("4.jpg", "the file is empty")
        assert {int(name.removesuffix(".jpg")) for name, _ in sample.unreadable} <= source.broken
        assert training[Place(4, 0, position)].name == sample.name
        found[index] += 1
    assert len(found) > 2
    sample = LabelledImages(source, heavy(), training=False)[Place(4, 0, 4)]
    assert (sample.image, sample.name, sample.unreadable) == (None, "4.jpg", (("4.jpg", "the file is empty"),))
    hopeless = LabelledImages(Pictures(5, broken=range(5)), heavy(), training=True)[Place(1, 0, 0)]
    assert hopeless.image is None
    assert len(hopeless.unreadable) == 1 + SUBSTITUTES


def test_closing_ends_workers_even_those_that_are_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # how long torch waits for them
    reading, writing = os.pipe()

    def stuck(image: Image.Image) -> Tensor:
        os.write(writing, b"!")
        time.sleep(600)
        return torch.zeros(1)

    images = LabelledImages(Pictures(8), stuck, training=True)
    iterator: Any = iter(create_loader(images, TrainingOrder(8, 4), collate, workers=1))
    (worker,) = iterator._workers
    assert os.read(reading, 1) == b"!"
    os.kill(worker.pid, signal.SIGTERM)  # as a scheduler does: no reason to leave the training without its worker
    assert worker.is_alive()
    close(iterator)
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL
    close(iter([]))
