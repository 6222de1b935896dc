"""Every family of docs/models.md through learner, engine, publish, canary and export."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.fleet.weight_update import Canary, CanaryFailed, differences
from learner.models.policy import FAMILIES
from learner.models.supported import check_architecture
from rollout.weights.held import differing
from rollout.weights.senders import make_trainer
from tests.learner.builders import adamw, groups, grpo, random_batch
from tests.learner.families import PARTICULAR, write_family
from tests.learner.in_turn import EnginesInTurn
from tests.learner.stages import stage

TABLE = Path(__file__).parents[2] / "docs/models.md"
SEQUENCES = [(1, 5, 6, 7), (1, 9, 4), (1, 2, 2, 40, 41, 3), (1, *range(10, 90), *range(20, 95))]
"""The last is longer than any window."""


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    engines = EnginesInTurn(tmp_path_factory.mktemp("vllm"))
    yield engines
    engines.close()


def by_transformers(directory: Path) -> list[list[float]]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    rows = []
    for ids in SEQUENCES:
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        rows.append(logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist())
    return rows


@pytest.mark.engine
@pytest.mark.parametrize("family", PARTICULAR)
def test_a_family_is_trained_published_and_exported(family, engines, start, tmp_path):
    model_dir = write_family(family, tmp_path / "model")
    check_architecture(model_dir)
    worker = start(model_dir)
    worker.export(tmp_path / "first")
    engines.ask("start", tmp_path / "first", "float32")
    canary = Canary.calibrate(SEQUENCES, {0: engines.ask("logprobs", SEQUENCES)}, worker.logprobs(SEQUENCES), "float32")
    worker.begin_stage(stage(grpo(), adamw(learning_rate=0.05), 10))
    assert worker.step(groups(random_batch()), updates=2, temperature=1.0).metrics["grad_norm"] > 0
    trained = worker.logprobs(SEQUENCES)
    with pytest.raises(CanaryFailed):
        canary.check(0, engines.ask("logprobs", SEQUENCES), trained)
    engines.ask("start_weight_update")
    trainer = make_trainer("shm", source=worker.source("float32"), client=engines, rank=0, prefix="test", address="127.0.0.1")
    trainer.version = 1
    trainer.send_weights()
    engines.ask("finish_weight_update")
    canary.check(0, engines.ask("logprobs", SEQUENCES), trained)
    held, stacked, _ = engines.ask("held")
    wrong, unread = differing([held], trainer.sums, stacked)
    assert wrong == [] and unread <= {"lm_head.weight"}
    worker.export(tmp_path / "trained")
    assert max(differences(by_transformers(tmp_path / "trained"), trained)) < 1e-4


def test_the_table_is_the_list_and_every_row_of_it_is_tested():
    _, *rows = re.findall(r"^\| [^|]+ \| `(\w+)` \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(FAMILIES) == sorted(PARTICULAR)
