"""Signals while Ray starts."""

import contextlib
import os
import signal
import sys
import time

import pytest

from cluster.fleet import connection
from cluster.stopping import Stop


def test_a_signal_that_ray_swallows_while_it_starts_is_heard(monkeypatch):
    def init(**_):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        with contextlib.suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr(connection.ray, "init", init)
    with Stop() as stop, pytest.raises(KeyboardInterrupt):
        connection._init(stop)
    assert stop.asked and signal.set_wakeup_fd(-1) == -1
