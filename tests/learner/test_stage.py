"""What a stage's description refuses, and that it needs no torch."""

import subprocess
import sys

import pytest

from learner.algorithms.table import resolve, resolve_reward_model
from tests.learner.builders import adamw
from tests.learner.stages import stage


def test_a_critic_has_an_optimizer_and_nothing_else_does():
    assert stage(resolve("ppo"), adamw(), 3, critic_optimizer=adamw()).critic_optimizer == adamw()
    with pytest.raises(ValueError, match="critic_optimizer: found none, expected one"):
        stage(resolve("ppo"), adamw(), 3)
    for row in (resolve("grpo"), resolve_reward_model("outcome_model")):
        with pytest.raises(ValueError, match="critic_optimizer: found one, expected none"):
            stage(row, adamw(), 3, critic_optimizer=adamw())


def test_importing_it_imports_no_torch():
    code = "import sys; sys.modules['torch'] = None; import learner.stage"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
