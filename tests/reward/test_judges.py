"""What a run asks of its judges: no text of somebody else's is read outside a process that can be killed, and these processes
can tell nothing and reach nobody that they were not given."""

import socket
import time

import pytest

from reward.config import RewardConfig
from reward.judging.judges import function_of, function_pool, gold_check, rule_pool
from reward.judging.pool_process import KEPT
from reward.judging.selftest import Report, try_rule
from tests.reward.builders import HANGS, question

SHORT = {"judge_seconds": 1.0}


@pytest.mark.slow
def test_references_that_take_for_ever_to_read_are_named_and_the_others_pass():
    began = time.monotonic()
    reasons = gold_check(RewardConfig(**SHORT))(["7", HANGS, "3 + 4 is 7\n#### 7", "who knows", HANGS])
    assert (reasons[0], reasons[2]) == (None, None) and "is not a number" in reasons[3]
    assert reasons[1] == reasons[4] == "killed: no answer within 1 s" and time.monotonic() - began < 60


@pytest.mark.slow
def test_the_self_test_reads_references_in_the_pool():
    found, config = Report(), RewardConfig(**SHORT)
    with rule_pool(config) as rule:
        try_rule([question(0, "7"), question(1, HANGS), question(2, "8")], config, rule, found)
    assert found.problems[0].startswith("1 question: the reference answer cannot be read")
    assert "q:1" in found.problems[0] and "killed: no answer" in found.problems[0]


REACHING = """
import os, socket

if os.environ.get("WHILE_LOADED"):
    socket.create_connection(("127.0.0.1", int(os.environ["WHILE_LOADED"])), 5)

def names(output):
    return dict.fromkeys(os.environ, True)

def call(output):
    return socket.create_connection(("127.0.0.1", int(output)), 5).send(b"x")

async def wait(output):
    import asyncio
    await asyncio.sleep(0.01)
    return 1.0
"""


@pytest.fixture
def reaching(tmp_path):
    """What a function of REACHING makes of an output, with these settings."""
    file = tmp_path / "reaching.py"
    file.write_text(REACHING)

    def ask(name, output="", **settings):
        with function_pool(RewardConfig(function=f"{file}:{name}", judge_seconds=20, **settings)) as pool:
            (outcome,) = function_of(pool)([(question(), output)])
        return outcome

    return ask


def test_a_judge_has_the_variables_that_it_is_given_and_no_others(reaching, monkeypatch):
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "COHORT_TEST"):
        monkeypatch.setenv(name, "secret")
    plain = set(reaching("names").value)
    assert plain <= {*KEPT, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONUNBUFFERED"} and "PATH" in plain
    assert set(reaching("names", environment=("OPENAI_API_KEY",)).value) == plain | {"OPENAI_API_KEY"}
    with pytest.raises(ValueError, match="reward.environment: ABSENT, GONE: not set on "):
        reaching("names", environment=("ABSENT", "OPENAI_API_KEY", "GONE"))


def test_a_judge_reaches_the_network_where_it_is_allowed_to_only(reaching, monkeypatch):
    server = socket.create_server(("127.0.0.1", 0))
    port = str(server.getsockname()[1])
    try:
        refused = reaching("call", port)
        assert refused.status == "error" and "PermissionError" in refused.reason
        assert reaching("wait").value == {"score": 1.0}, "an event loop needs no network"
        assert reaching("call", port, network=True).value == {"score": 1.0}
        monkeypatch.setenv("WHILE_LOADED", port)
        with pytest.raises(ValueError, match="PermissionError"):
            reaching("call", port, environment=("WHILE_LOADED",))
    finally:
        server.close()


@pytest.mark.parametrize("given", [{"network": True}, {"environment": ["HF_TOKEN"]}])
def test_what_only_a_function_could_use_is_refused_without_one(given):
    with pytest.raises(ValueError, match="there is no reward.function that it is for"):
        RewardConfig(**given)
