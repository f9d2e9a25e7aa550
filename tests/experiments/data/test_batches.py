"""Batches in order: data sets of Grain, read and placed ahead of their caller."""

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import threading
import time

import grain
import numpy as np
import pytest

from experiments.data import decoding, sources
from experiments.data.batches import Batches, prefetched
from experiments.errors import ConfigError
from tests.data_files import encoded, random_images

PHOTOS = random_images(20, (6, 12, 3))
CHANGES = {"binarize": True, "augment": ("flip", "affine")}


def streamed(files):
    fit = functools.partial(decoding.fit, size=(6, 6))
    return sources.Streamed(sources.Encoded(files), (6, 6, 3), fit)


@pytest.fixture
def photos():
    return streamed([encoded(photo) for photo in PHOTOS])


def threads():
    """Those of Grain that read ahead."""
    return [t for t in threading.enumerate() if t.name.startswith("grain-")]


@pytest.fixture
def nothing_remains():
    """The threads and processes that a test starts end with its iterators."""
    yield
    deadline = time.monotonic() + 10
    while threads():
        assert time.monotonic() < deadline, threads()
        time.sleep(0.01)
    assert not multiprocessing.active_children()


def take(batches, first, num):
    """The batches of `num` steps from `first` on, as training takes them."""
    with contextlib.closing(prefetched(batches.dataset(first))) as iterator:
        return list(itertools.islice(iterator, num))


@pytest.mark.usefixtures("nothing_remains")
@pytest.mark.parametrize("kind", ["decoded", "streamed"])
def test_batches_in_order_are_those_of_random_access(kind, photos):
    images = photos if kind == "streamed" else np.asarray(photos)
    crop = ("crop",) if kind == "streamed" else ()
    options = CHANGES | {"augment": (*CHANGES["augment"], *crop)}
    for index in range(2):
        batches = Batches(images, 8, 3, **options, process_index=index, process_count=2)
        for first in (0, 4):  # the second starts in the middle of an epoch
            taken = take(batches, first, 5)
            expected = [batches(step) for step in range(first, first + 5)]
            np.testing.assert_array_equal(taken, expected)


@pytest.mark.usefixtures("nothing_remains")
def test_workers_read_the_same_batches(photos):
    options = CHANGES | {"augment": ("flip", "crop", "affine")}
    alone = Batches(photos, 4, 3, **options)
    taken = take(Batches(photos, 4, 3, **options, num_workers=2), 5, 4)
    np.testing.assert_array_equal(taken, [alone(step) for step in range(5, 9)])


def test_data_set_ends_before_the_last_step(photos):
    for images in (photos, PHOTOS):
        assert len(list(Batches(images, 4, 0).dataset(2, 5))) == 3
        with contextlib.closing(
            prefetched(Batches(images, 4, 0).dataset(2, 5))
        ) as left:
            assert len(list(left)) == 3


@pytest.mark.usefixtures("nothing_remains")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_image_ends_the_batches_with_its_name(num_workers):
    files = [encoded(photo) for photo in PHOTOS]
    files[7] = files[7][:50]
    batches = Batches(streamed(files), 4, 0, num_workers=num_workers)
    order = Batches(np.arange(20), 4, 0)
    damaged = next(step for step in range(5) if 7 in order(step))
    with contextlib.closing(prefetched(batches.dataset(0))) as iterator:
        for _ in range(damaged):
            next(iterator)
        with pytest.raises(ConfigError, match=r"image 7 cannot be read.*on_corrupt='s"):
            next(iterator)
    with pytest.raises(ConfigError, match="image 7 cannot be read"):
        batches(damaged)


def numbers(first=0, last=100):
    return grain.MapDataset.range(first, last).to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )


@pytest.mark.usefixtures("nothing_remains")
def test_two_values_to_come_are_computed_before_they_are_asked_for():
    calls, third = [], threading.Event()

    def function(number):
        calls.append(number)
        if len(calls) == 3:
            third.set()
        return 10 * number

    with contextlib.closing(prefetched(numbers(5), function)) as iterator:
        assert next(iterator) == 50
        assert third.wait(10)
        time.sleep(0.05)
        assert calls == [5, 6, 7]
        assert [next(iterator) for _ in range(20)] == list(range(60, 260, 10))
    assert calls == list(range(5, 5 + len(calls)))  # nothing twice


def test_the_caller_does_not_wait_for_what_comes_after():
    first, rest = threading.Event(), threading.Event()

    def function(number):
        if number == 1:
            first.set()
        if number == 2:
            rest.wait(60)
        return number

    with contextlib.closing(prefetched(numbers(), function)) as iterator:
        assert next(iterator) == 0
        assert first.wait(10)
        assert next(iterator) == 1  # while 2 is still under way
        assert not rest.is_set()
        rest.set()
        assert next(iterator) == 2


@pytest.mark.usefixtures("nothing_remains")
def test_error_comes_with_the_value_that_has_it():
    def function(number):
        if number == 2:
            raise ConfigError("no number 2")
        return number

    with contextlib.closing(prefetched(numbers(), function)) as iterator:
        assert [next(iterator), next(iterator)] == [0, 1]
        with pytest.raises(ConfigError) as raised:
            next(iterator)
    assert str(raised.value) == "no number 2"


@pytest.mark.usefixtures("nothing_remains")
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_ends_the_thread_at_any_time(taken):
    iterator = prefetched(numbers())
    assert list(itertools.islice(iterator, taken)) == list(range(taken))
    assert len(threads()) == (taken > 0)
    iterator.close()
    iterator.close()


@pytest.mark.usefixtures("nothing_remains")
def test_closing_ends_the_workers(photos):
    batches = Batches(photos, 4, 0, num_workers=2)
    with contextlib.closing(prefetched(batches.dataset(0))) as iterator:
        next(iterator), next(iterator)  # of one worker each
        assert len(multiprocessing.active_children()) == 2


@pytest.mark.usefixtures("nothing_remains")
def test_workers_outlive_signals_to_all_processes_of_a_run(photos):
    batches = Batches(photos, 4, 0, num_workers=2)
    with contextlib.closing(prefetched(batches.dataset(0))) as iterator:
        taken = [next(iterator), next(iterator)]  # of one worker each
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGTERM)
            os.kill(worker.pid, signal.SIGINT)
        taken += list(itertools.islice(iterator, 8))
    np.testing.assert_array_equal(taken, [batches(step) for step in range(10)])
