"""Signals: heeded once, then in earnest; handlers put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from slimbrain_app.training import stopping
from slimbrain_app.training.stopping import SIGNALS, heed_signals


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_a_wish_and_not_an_end(number):
    with heed_signals() as stop:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked


def test_a_signal_that_comes_twice_at_once_is_one_wish():
    with heed_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked


def test_handlers_are_put_back_even_after_an_error():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError), heed_signals():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before


SECOND = f"""
import os, signal, time
from slimbrain_app.training.stopping import heed_signals
with heed_signals():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({stopping._ECHO_SECONDS + 0.1})
    os.kill(os.getpid(), signal.SIGUSR1)
    print("still here")
"""


def test_a_second_signal_ends_the_process_at_once():
    ended = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGUSR1
    assert not ended.stdout
