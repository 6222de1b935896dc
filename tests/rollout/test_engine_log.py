"""The cause of an engine's failure, from what its processes wrote."""

import asyncio
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from rollout.config import RolloutConfig
from rollout.engine.engine import Engine, EngineError
from tests.rollout.test_engine_logic import FakeLLM

LATER = "\x1b[0;36m(EngineCore pid=11)\x1b[0;0m ERROR 01-31 12:00:01 [core.py:7] RuntimeError: Worker failed, see above\n"
WORKER = """(Worker pid=12) ERROR 01-31 12:00:00 [multiproc_executor.py:5] Traceback (most recent call last):
(Worker pid=12) ERROR 01-31 12:00:00 [multiproc_executor.py:5]     raise RuntimeError("an earlier line of code")
\x1b[0;36m(Worker pid=12)\x1b[0;0m ERROR 01-31 12:00:00 [multiproc_executor.py:5] RuntimeError: Unsupported: head_dim=16
"""
HERE = "(MainProcess pid=10) ERROR 01-31 12:00:02 [async_llm.py:9] vllm.v1.engine.exceptions.EngineDeadError: See above.\n"


@contextmanager
def output_in(path: Path):
    """This process's output goes to a file, as under Ray; a failure of an earlier engine is in it."""
    kept = os.dup(1)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
    os.write(1, WORKER.replace("head_dim=16", "another engine's").encode())
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@pytest.mark.parametrize(
    ("written", "cause"),
    [
        (WORKER + LATER + HERE, "RuntimeError: Unsupported: head_dim=16"),
        (LATER + HERE, "RuntimeError: Worker failed, see above"),
        ("", "EngineCore encountered an issue. See stack trace (above) for the root cause."),
    ],
)
def test_an_engine_that_dies_names_the_cause_and_the_log(tmp_path, written, cause):
    def dies(*args):
        os.write(1, written.encode())
        raise EngineDeadError()

    with output_in(tmp_path / "worker.out"):
        engine = Engine(FakeLLM(pause_generation=dies), transport="shm", stop_token_ids=(2,), prefix="fake")
        with pytest.raises(EngineError) as error:
            asyncio.run(engine.logprobs([(1, 2)]))
    assert str(error.value) == f"a wave of 1 requests: {cause} (log: {tmp_path / 'worker.out'})"


def test_an_engine_that_does_not_start_names_the_cause_and_the_log(tmp_path, tiny_model_dir, monkeypatch):
    def fails(settings, **options):
        os.write(1, LATER.replace("Worker failed, see above", "Available memory is less than asked for").encode())
        raise RuntimeError("Engine core initialization failed. See root cause above.")

    monkeypatch.setattr(AsyncLLM, "from_vllm_config", fails)
    start = {"max_model_len": 64, "stop_token_ids": (2,), "cores": None, "prefix": "fake"}
    with output_in(tmp_path / "worker.out"), pytest.raises(EngineError) as error:
        asyncio.run(Engine.start(tiny_model_dir, RolloutConfig(transport="shm"), **start))
    said = f"vLLM did not start on {tiny_model_dir}: RuntimeError: Available memory is less than asked for"
    assert str(error.value) == f"{said} (log: {tmp_path / 'worker.out'})"
