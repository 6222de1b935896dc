"""Every process that computes calls each function of torch by one thread before several threads can."""

import subprocess
import sys

import pytest

SPY = """
import sys, torch
from rollout.first_calls import FUNCTIONS
calls = []
def spy(name, function):
    def called(x, *args, **kwargs):
        calls.append((name, x.dtype, x.numel()))
        return function(x, *args, **kwargs)
    return called
for name in FUNCTIONS:
    setattr(torch, name, spy(name, getattr(torch, name)))
{process}
first = calls[: 2 * len(FUNCTIONS)]
assert {{(name, dtype) for name, dtype, _ in first}} == {{(n, d) for n in FUNCTIONS for d in (torch.float32, torch.float64)}}
assert all(size == 1 for *_, size in first)
"""
PROCESSES = {
    "engine": "import rollout.weights.receivers",
    "learner": """
from learner.worker import LearnerWorker
try:
    LearnerWorker(sys.modules["learner.config"].LearnerConfig(), "no model", rendezvous="file:///nowhere")
except Exception:
    pass
""",
    "reward": """
from reward.config import RewardConfig
from reward.worker import RewardWorker
worker = RewardWorker.__new__(RewardWorker)
worker._config = RewardConfig()
try:
    worker.load_model("no model", "outcome")
except Exception:
    pass
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_each_function_is_called_by_one_thread_before_a_model_is_there(process):
    subprocess.run([sys.executable, "-c", SPY.format(process=PROCESSES[process])], check=True, timeout=300)
