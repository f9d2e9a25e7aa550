import threading

import pytest

from experiments.data.prefetch import Prefetch


@pytest.fixture
def feed():
    """A prefetched function that notes its calls."""
    calls, done = [], threading.Event()

    def function(step):
        calls.append(step)
        if len(calls) == 3:
            done.set()
        return 10 * step

    feed = Prefetch(function)
    feed.calls, feed.done = calls, done
    yield feed
    feed.close()


def test_steps_to_come_are_computed_before_they_are_asked_for(feed):
    assert feed(5) == 50
    assert feed.done.wait(10)
    assert feed.calls == [5, 6, 7]


def test_nothing_is_computed_twice_in_ascending_order(feed):
    assert [feed(step) for step in range(20)] == [10 * step for step in range(20)]
    feed.close()
    assert feed.calls == list(range(len(feed.calls)))


def test_any_order_gives_the_same_values(feed):
    steps = [3, 4, 0, 100, 101, 7, 7, 8]
    assert [feed(step) for step in steps] == [10 * step for step in steps]


def test_error_comes_with_the_step_that_has_it():
    def function(step):
        if step == 2:
            raise ValueError("no step 2")
        return step

    feed = Prefetch(function)
    assert [feed(0), feed(1)] == [0, 1]
    with pytest.raises(ValueError, match="no step 2"):
        feed(2)
    assert feed(3) == 3
    feed.close()


def test_the_caller_does_not_wait_for_what_comes_after():
    first, rest = threading.Event(), threading.Event()

    def function(step):
        if step == 1:
            first.set()
        if step == 2:
            rest.wait(60)
        return step

    feed = Prefetch(function)
    assert feed(0) == 0
    assert first.wait(10)
    assert feed(1) == 1  # while 2 is still under way
    assert not rest.is_set()
    rest.set()
    assert feed(2) == 2
    feed.close()
