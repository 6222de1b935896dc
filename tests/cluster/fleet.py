"""A fleet in this process: the workers of rollout, reward and learner without Ray, and an engine that answers by a script."""

import asyncio
import math
import random
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

from cluster.run import launch
from learner.worker import LearnerWorker
from reward.worker import RewardWorker
from rollout.types import Completion, FinishReason
from rollout.worker import RolloutWorker
from tests.cluster.clusters import free_port


class Engine:
    """Adds up what it is asked (`17 + 8 - 9`) in steps of one line, every second time with a slip in the first.

    `spoil(wave, n, completion)` may make something else of the n-th completion, in the wave-th wave, and `gold(wave, gold)` of
    the reference answer that its judge sees.
    """

    def __init__(self, spoil=lambda wave, n, made: made, gold=lambda wave, gold: gold):
        self.tokenizer, self.spoil, self.gold, self.count, self.wave = None, spoil, gold, 0, 0
        self.version = 0

    async def __call__(self, requests):
        self.wave += 1
        return [self._complete(request) for request in requests]

    def _complete(self, request):
        asked, _, begun = self.tokenizer.decode(request.prompt_ids, skip_special_tokens=True).partition("\n")
        start, *terms = asked.replace("+ ", "+").replace("- ", "-").split()
        value, lines = int(start) + (10 if random.Random(request.seed).random() < 0.5 else 0), []
        for term in terms:
            lines.append(f"{value}{term}={value + int(term)}\n")
            value += int(term)
        said = "".join([*lines[begun.count("\n") :], f"#### {value}"])
        ids = (*self.tokenizer.encode(said, add_special_tokens=False), self.tokenizer.eos_token_id)
        made = Completion(
            output_ids=ids, logprobs=(-0.5,) * len(ids), versions=((self.version, 0),), finish_reason=FinishReason.STOP
        )
        self.count += 1
        return self.spoil(self.wave, self.count, made)


def without_numbers(made):
    """As an engine answers that went wrong: a log-probability is not a number."""
    return replace(made, logprobs=(math.nan, *made.logprobs[1:]))


def cut_off(made):
    """Without the answer, which comes last."""
    ids = (*made.output_ids[:3], made.output_ids[-1])
    return replace(made, output_ids=ids, logprobs=made.logprobs[:4])


class Learner(LearnerWorker):
    """The worker, called as the group of the ranks is."""

    def named(self, name):
        return self

    def step(self, batch, updates, temperature):
        return super().step(batch, updates=updates, temperature=temperature)


class LearnerCalls:
    """The learner group, each of whose calls is one of `learn(method, *arguments)`."""

    def __init__(self, learn):
        self._learn = learn

    def named(self, name):
        return self

    def __getattr__(self, method):
        return lambda *args: self._learn(method, *args)


class Fleet:
    """What the driver calls of `cluster.fleet.roles.Roles`, with one slot each."""

    def __init__(self, engine, config, model_dir, *, max_model_len, incarnation):
        self.deaths, self.info, self.stale, self.lives, self.canary, self.split = 0, {}, set(), Counter(), None, {}
        self.config, self.aside, self.wanted = config, set(), {}
        self.engine, self._arguments = engine, (config, model_dir, max_model_len)

    def start(self):
        config, model_dir, longest = self._arguments
        options = {"prompt": config.data.prompt, "run_seed": config.seed, "max_model_len": longest}
        self.rollout = RolloutWorker(config.rollout, model_dir, generate_fn=self.engine, **options)
        self.engine.tokenizer = self.rollout.tokenizer
        self.reward = RewardWorker(config.reward)
        self.learner = Learner(config.learner, model_dir, rendezvous=f"tcp://127.0.0.1:{free_port()}")

    def stop(self, deadline_s):
        self.reward.close()
        self.learner.close()

    def slots(self):
        return [0]

    def allowed_s(self, waves):
        return 60.0

    def generate(self, waves, sampling, name, each, failed):
        for lease, group in zip(waves[0], asyncio.run(self.rollout.generate(waves[0], sampling, 60)), strict=True):
            each(lease, group)
        return {}

    def score(self, parts, by, name):
        groups = [replace(g, question=self._asked(g.question)) for g in parts[0]]
        scored = zip(self.reward.score(groups), parts[0], strict=True)
        return {0: [replace(made, question=group.question) for made, group in scored]}, {}

    def _asked(self, question):
        return replace(question, gold=self.engine.gold(self.engine.wave, question.gold))

    def rest(self):
        pass

    def learner_logprobs(self, sequences):
        return self.learner.logprobs(sequences)

    def engine_logprobs(self, slots, sequences):
        return {0: self.learner.logprobs(sequences)}, {}

    def publish(self, version, slots):
        self.engine.version = version
        return f"digest {version}", {}, False

    def reward_slots(self):
        return [0]

    def send_reward_model(self, version, slots):
        return f"digest of reward model {version}", {}


def install(monkeypatch, engine):
    """`cohort train` on such a fleet."""
    monkeypatch.setattr(launch, "connected", lambda *_: nullcontext())
    monkeypatch.setattr(launch, "Roles", lambda *args, **options: Fleet(engine, *args, **options))
