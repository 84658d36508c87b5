import threading

import numpy as np
import pytest

from pellucid.core.ahead import Ahead


def test_what_was_asked_for_is_made_on_another_thread_and_once():
    threads = []

    def make(name):
        threads.append(threading.current_thread())
        return np.full(2, name)

    with Ahead(make) as ahead:
        ahead.ask(3)
        assert ahead.take(3).tolist() == [3, 3]
        assert ahead.take(4).tolist() == [4, 4]
    assert threads[0] is not threading.current_thread()
    assert threads[1:] == [threading.current_thread()]


def test_an_error_reaches_the_one_who_takes():
    def make(name):
        raise ValueError(f"no {name}")

    with Ahead(make) as ahead:
        ahead.ask("noise")
        with pytest.raises(ValueError, match="no noise"):
            ahead.take("noise")


def test_no_thread_is_left_behind():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Ahead(np.zeros) as ahead:  # noqa: PT012  # both are the point
        ahead.ask(2)
        ahead.ask(3)
        raise KeyboardInterrupt
    assert threading.active_count() == before
