"""Signals while Ray starts, and what is private of a local cluster."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode

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


def test_every_local_cluster_has_a_token_of_its_own_whatever_the_users_settings_which_hold_again_afterwards(
    tmp_path, monkeypatch
):
    given = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "mine"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    seen = []
    for name in ("a", "b"):
        (folder := tmp_path / name).mkdir()
        with connection._own_token(folder) as token:
            assert token.stat().st_mode & 0o777 == 0o600
            header = AuthenticationTokenLoader.instance().get_token_for_http_header()
            assert header == {"authorization": f"Bearer {token.read_text()}"}
            assert get_authentication_mode() == AuthenticationMode.TOKEN and "RAY_AUTH_TOKEN" not in os.environ
            seen.append(token.read_text())
        assert get_authentication_mode() == AuthenticationMode.DISABLED
        assert {name: os.environ.get(name) for name in (*given, "RAY_AUTH_TOKEN_PATH")} == {
            **given,
            "RAY_AUTH_TOKEN_PATH": None,
        }
    assert len(set(seen)) == 2 and all(len(token) == 64 for token in seen)


def test_a_session_is_in_the_private_folder_unless_its_sockets_would_have_too_long_a_path(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for room, where in ((9, "r"), (10, None)):
        folder = Path("/" + "x" * (room - 1), "cohort_ray_4194304_abcdefgh")
        assert connection.private_session(folder) == (where and str(folder / where))
    monkeypatch.setenv("RAY_TMPDIR", "/elsewhere")
    assert connection.private_session(Path("/tmp/cohort_ray_1_a")) is None
