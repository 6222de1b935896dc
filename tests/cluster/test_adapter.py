"""An adapter on its way from a learner to real engines, and what the canary says of an engine that kept an older one."""

from contextlib import contextmanager

import pytest
import torch
from torch.distributed.tensor import distribute_tensor
from transformers import AutoModelForCausalLM

from cluster.fleet.weight_update import FLOOR, Canary, CanaryFailed
from learner.models.weights import ModelWeights, trained
from rollout.weights.senders import make_trainer
from tests.learner.builders import adamw, groups, grpo, new_worker, random_batch
from tests.learner.stages import stage
from tests.rollout.engines import PROMPTS, requests
from tests.rollout.test_engine_updates import Remote

pytestmark = pytest.mark.engine
SEQUENCES = [[1, 5, 6, 7, 30, 31], [1, 9, 40, 2, 77], list(range(10, 60))]


@contextmanager
def learner(directory, **config):
    worker = new_worker(directory, **config)
    try:
        yield worker
    finally:
        worker.close()


class Sent:
    """Updates of an engine by production's sender, from a worker's source."""

    def __init__(self, engine, loop, source):
        self.engine, self.loop, self.source, self.trainer = engine, loop, source, None

    def __call__(self):
        self.loop.run(self.engine.start_weight_update())
        where = {"source": self.source, "client": Remote(self.engine, self.loop), "prefix": "test", "address": "127.0.0.1"}
        self.trainer = self.trainer or make_trainer("shm", rank=0, **where)
        self.trainer.version = self.engine.version + 1
        self.trainer.send_weights()
        self.loop.run(self.engine.finish_weight_update(self.trainer.version, self.trainer.sums))
        return self.trainer.digest


@torch.no_grad()
def fill(worker, size, seed=0):
    draw = torch.Generator().manual_seed(seed)
    for p in trained(worker._policy).values():
        p.copy_(distribute_tensor(size * torch.randn(p.shape, generator=draw), p.device_mesh, p.placements))


def test_an_engine_follows_the_adapter_and_one_that_kept_an_older_one_is_refused(engine, engine_loop, tiny_model_dir):
    with learner(tiny_model_dir, lora={"rank": 4}) as worker:
        read = lambda: engine_loop.run(engine.logprobs(SEQUENCES))  # noqa: E731
        canary, first = Canary.calibrate(SEQUENCES, {0: read()}, worker.logprobs(SEQUENCES), "float32"), read()
        assert canary.tolerance == FLOOR["float32"]
        send = Sent(engine, engine_loop, worker.source("float32"))
        worker.begin_stage(stage(grpo(), adamw(learning_rate=3e-3), 4))
        digests = set()
        for seed in range(2):
            worker.step(groups(random_batch(seed)), updates=1, temperature=1.0)
            with pytest.raises(CanaryFailed, match="rollout-0 does not hold the published weights"):
                canary.check(0, read(), worker.logprobs(SEQUENCES))
            digests.add(send())
            assert canary.check(0, read(), worker.logprobs(SEQUENCES)) < FLOOR["float32"] / 10
            for made in engine_loop.run(engine.generate(requests(PROMPTS))):
                assert made.versions == ((engine.version, 0),)
        assert len(digests) == 2
        sent = sum(x.nbytes for _, x in worker.source("float32"))
        whole = sum(x.nbytes for _, x in ModelWeights(worker._policy.causal_lm, torch.float32))
        assert sent == 4 * sum(p.numel() for p in trained(worker._policy).values()) < whole / 4
        fill(worker, 0.0)
        send()
        assert read() == first, "nothing adds up on the engine's side"
        Sent(engine, engine_loop, ModelWeights(worker._policy.causal_lm, torch.float32))()
        assert read() == first, "whole weights are taken again"


def test_two_ranks_in_bfloat16_merge_what_the_learner_sends_and_their_sums_agree(
    make_tiny_model, start_engine, engine_loop, tmp_path
):
    make_tiny_model(tmp_path, tied=True)
    engine = start_engine(tmp_path, tensor_parallel_size=2, dtype="bfloat16")
    try:
        with learner(tmp_path, lora={"rank": 4, "targets": ["q_proj", "down_proj"]}) as worker:
            for seed in range(2):
                fill(worker, 0.3, seed)
                Sent(engine, engine_loop, worker.source("bfloat16"))()
                expected = worker.logprobs(SEQUENCES)
                found = engine_loop.run(engine.logprobs(SEQUENCES))
                gaps = [abs(a - b) for rows in zip(found, expected, strict=True) for a, b in zip(*rows, strict=True)]
                assert sum(gaps) / len(gaps) < 0.1
            base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
            [row] = [base(torch.tensor([s])).logits[0, :-1].log_softmax(-1)[range(len(s) - 1), s[1:]] for s in SEQUENCES[:1]]
            assert (torch.tensor(expected[0]) - row).abs().mean() > 0.5
    finally:
        engine_loop.run(engine.shutdown())
