"""How jobs end: exit codes, first errors, and the time that a stop leaves."""

import pytest

from cluster.jobs.endings import exit_code, first_error
from cluster.stopping import Stop, grace_s

LOG = "asked for the data\nstopped by a signal after step 3; `cohort resume /shared/mine` goes on from here\nexit code 4\n"
CHAINED = """12:00:00 reading the data
Traceback (most recent call last):
  File "b.py", line 9, in save
    write()
  File "a.py", line 1, in write
    raise OSError("no space")
OSError: no space

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "c.py", line 3, in close
ValueError: closed
"""


@pytest.mark.parametrize(
    "log, message, said",
    [
        (CHAINED, "", 'OSError: no space\n  File "a.py", line 1, in write'),
        (CHAINED + "the run failed: score step 1: 4 of 4\nexit code 3\n", "", "the run failed: score step 1: 4 of 4"),
        ("error: a: 1\nerror: b: 2\nexit code 2\n", "", "error: a: 1\nerror: b: 2"),
        ("error: it fits on no node. Wanted:\n  rollout-0\nNodes:\n  n0\nexit code 2\n", "",
         "error: it fits on no node. Wanted:\n  rollout-0\nNodes:\n  n0"),
        ("x\nsh: 1: exec: cohort: not found\n", "failed with exit code 127", "sh: 1: exec: cohort: not found"),
        ("", "runtime_env setup failed\nmore", "runtime_env setup failed"),
        ("", "", "it said nothing"),
    ],
)  # fmt: skip
def test_the_first_error_is_what_the_command_says_or_the_first_exception(log, message, said):
    assert first_error(log, message) == said


def test_exit_codes_of_jobs():
    assert exit_code("RUNNING", None, LOG) is None and exit_code("SUCCEEDED", 0, "") == 0
    assert [exit_code("FAILED", code, "") for code in (2, 3, 4, 1, 127, -9, None)] == [2, 3, 4, 3, 3, 3, 3]
    assert exit_code("STOPPED", None, LOG) == 4 and exit_code("STOPPED", None, "killed") == 3
    assert exit_code("STOPPED", None, "exit code 4\nexit code 0\n") == 0, "the last one"


def test_a_job_that_would_be_killed_before_it_has_saved_warns(monkeypatch, caplog):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "10")
    assert grace_s(10) == 10 and caplog.messages == []
    assert grace_s(11) == 11
    assert "found 11 s, and this job's RAY_JOB_STOP_WAIT_TIME_S is 10: a stop would kill the run" in caplog.messages[-1]
    stop = Stop()
    stop.expect(15.0)
    assert len(caplog.messages) == 1
    stop.expect(15.1)
    stop.expect(20.0)
    assert len(caplog.messages) == 2 and "a checkpoint took 15.1 s, and a stop leaves 30 s" in caplog.messages[-1]
