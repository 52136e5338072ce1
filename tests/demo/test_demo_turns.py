"""Turns: one at a time, cheap ones before dear ones, none for ever, and a failure lets the next one go on."""

import threading
import time

import pytest

from video_diffusion.demo.turns import Turns


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self):
        return self.now


def order_of(turns, works):
    """The order in which requests get their turns that come one after the other while another one runs."""
    order, threads = [], []
    free = threading.Event()

    def ask(name, work, wait=None):
        with turns.turn(work):
            order.append(name)
            if wait is not None:
                wait.wait(10)

    def start(*asked):
        threads.append(threading.Thread(target=ask, args=asked))
        before = len(turns.waiting) + (turns.running is not None)
        threads[-1].start()
        while len(turns.waiting) + (turns.running is not None) == before:
            time.sleep(0.001)

    start("first", 1, free)
    for name, (arrival, work) in works.items():
        turns.clock.now = arrival
        start(name, work)
    free.set()
    for thread in threads:
        thread.join(10)
    return order


def test_a_cheap_request_passes_a_dear_one_but_not_one_that_has_waited_longer_than_its_own_length():
    works = {"dear": (0, 60), "cheap": (10, 2), "later": (59, 2), "too late": (61, 1)}
    assert order_of(Turns(rate=1, clock=Clock()), works) == ["first", "cheap", "dear", "later", "too late"]
    works = {"dear": (0, 60), "a": (50, 2), "b": (55, 2), "c": (57, 2), "d": (58.5, 2)}
    assert order_of(Turns(rate=1, clock=Clock()), works) == ["first", "a", "b", "c", "dear", "d"]


def test_one_runs_at_a_time_and_those_that_wait_are_told_their_place_and_time():
    clock = Clock()
    turns, told, busy = Turns(rate=2, clock=clock), [], []

    def ask(work):
        with turns.turn(work, lambda place, seconds: told.append((work, place, seconds))):
            busy.append(1)
            assert len(busy) == 1
            time.sleep(0.01)
            busy.pop()

    with turns.turn(10):
        clock.now = 5
        threads = [threading.Thread(target=ask, args=(work,)) for work in (1, 3)]
        for i, thread in enumerate(threads, start=1):
            thread.start()
            while len(turns.waiting) < i:
                time.sleep(0.001)
        time.sleep(0.05)
    for thread in threads:
        thread.join(10)
    assert (1, 1, 15.0) in told  # 10 · 2 s of which 5 s are over
    assert (3, 2, 17.0) in told


def test_a_failure_in_a_turn_and_one_while_waiting_let_the_others_go_on_and_a_turn_is_measured():
    clock = Clock()
    turns = Turns(rate=1, clock=clock)
    with pytest.raises(MemoryError), turns.turn(1):
        raise MemoryError
    assert turns.rate == 1
    with turns.turn(2):
        clock.now += 8
    assert turns.rate == 2  # a third of the way from 1 to 4
    turns.running = object.__new__(type("Running", (), {"work": 0}))

    def leave(place, seconds):
        raise ConnectionError

    with pytest.raises(ConnectionError), turns.turn(1, leave):
        pass
    assert not turns.waiting
