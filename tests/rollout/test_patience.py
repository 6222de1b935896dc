"""Waves of hanging programs: they end soon, whoever is given up is rejected and not wrong, and no deadline is outlasted."""

import asyncio
import time

import pytest

from rollout.config import PromptConfig, RolloutConfig, ToolsConfig
from rollout.patience import Patience, longest
from rollout.tasks.arithmetic import make_small_llama
from rollout.tools.sandbox import Ran, Sandbox
from rollout.types import Completion, FinishReason, Lease, Question, Sampling, sample_seed
from rollout.worker import RolloutWorker


def test_a_few_may_take_all_their_time_then_each_a_tenth_and_a_hopeless_rest_none():
    patience, limits = Patience(30.0, 80), []
    while not patience.gone:
        limits.append(patience.limit)
        patience.count(hung=True)
    assert limits == [30.0] * 10 + [3.0] * 10
    assert sum(limits) < longest(80, 30.0, 1)
    fair = Patience(30.0, 80)
    for i in range(80):
        fair.count(hung=i % 3 == 0)
    assert fair.hung == 27 and fair.hurried and not fair.gone, "most of its pieces end by themselves"
    assert Patience(0.5, 4).limit == 0.5 and not Patience(5.0, 1).hurried


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    make_small_llama(folder, 0, "small-llama-code")
    return folder


class Engine:
    """Every output is a program, the first time it is asked; then it ends. Takes `seconds` for a call."""

    def __init__(self, worker, program, seconds=0.0):
        self.seconds, self.deadlines, self.seeds = seconds, [], []
        ids = worker.tokenizer.encode(f"```python\n{program}\n```", add_special_tokens=False)
        self.says = [ids, [worker.tokenizer.eos_token_id]]

    async def generate(self, requests, *, deadline_s):
        self.deadlines.append(deadline_s)
        self.seeds.append([r.seed for r in requests])
        await asyncio.sleep(self.seconds)
        ids = self.says[min(len(self.deadlines), 2) - 1]
        made = Completion(
            output_ids=tuple(ids), logprobs=(-1.0,) * len(ids), versions=((0, 0),), finish_reason=FinishReason.STOP
        )
        return [made] * len(requests)


def wave(model_dir, count, program="while True: pass", draw=0, engine_seconds=0.0, **limits):
    """(samples, why others are rejected, the engine) of a wave through a worker as an actor asks for it."""
    config = RolloutConfig(tools=ToolsConfig(**limits))
    worker = RolloutWorker(config, model_dir, run_seed=5, max_model_len=512, prompt=PromptConfig())
    worker._engine = engine = Engine(worker, program, engine_seconds)
    question = Question(ordinal=0, id="q:0", text="?", gold="7", prompt_ids=(1, 9))
    lease = Lease(question=question, group_id="grpo/0", indices=tuple(range(count)), attempt=0, draw=draw)
    sampling = Sampling(temperature=1.0, max_new_tokens=400)
    [group] = asyncio.run(worker.generate([lease], sampling, deadline_s=60.0))
    made = group.samples
    assert [sample.index for sample in made] == list(range(count))
    return [s for s in made if not s.rejected], [s.rejected for s in made if s.rejected], engine


@pytest.mark.slow
def test_hanging_programs_of_a_wave_end_soon_and_what_is_given_up_is_rejected(model_dir):
    began = time.monotonic()
    samples, rejected, _ = wave(model_dir, 60, seconds=0.3, at_once=2)
    assert time.monotonic() - began < 60
    assert [s.index for s in samples] == list(range(len(samples))) and 16 <= len(samples) <= 17
    assert all("TimeoutError: the program ran longer than 0.3 s" in s.text for s in samples)
    assert len(samples) + len(rejected) == 60
    assert all(why.startswith("the program was not run: 1") and "programs before it" in why for why in rejected)


def test_hundreds_of_hanging_programs_fit_the_deadline_that_follows_from_them(model_dir, monkeypatch):
    spent = []

    def hang(sandbox, program, seconds):
        spent.append(seconds)
        return Ran(output=f"TimeoutError: the program ran longer than {seconds:g} s\n", ended="time")

    monkeypatch.setattr(Sandbox, "_run", hang)
    samples, rejected, _ = wave(model_dir, 245, seconds=20.0, at_once=2)
    assert len(samples) in (30, 31) and spent[:30] == [20.0] * 30 and set(spent[31:]) == {2.0}
    assert sum(spent) / 2 < 245 * 20 / 2 / 6, "a sixth of what all of them could take"
    given_up = [why for why in rejected if "given up after 2 s" in why]
    assert len(given_up) == len(spent) - len(samples) and len(rejected) == 245 - len(samples)


def test_a_short_limit_is_the_sandboxes_failure_where_the_program_could_have_ended(monkeypatch):
    monkeypatch.setattr(Sandbox, "_run", lambda self, program, seconds: Ran(output=f"{seconds}", ended="by itself"))
    patience = Patience(20.0, 8)
    for _ in range(8):
        patience.count(hung=True)
    patience.done = 100
    assert asyncio.run(Sandbox(ToolsConfig(seconds=20.0)).run("1", patience)).output == "2.0"


def test_the_engines_deadline_holds_for_all_turns_of_a_wave_together(model_dir):
    _, _, engine = wave(model_dir, 1, program="print(7)", engine_seconds=0.2, seconds=20.0)
    assert engine.deadlines[0] == 60.0 and 59.0 < engine.deadlines[1] <= 59.8


def test_another_draw_has_other_random_numbers_at_every_turn(model_dir):
    first, second = (wave(model_dir, 2, program="print(7)", seconds=20.0, draw=draw)[2].seeds for draw in (0, 1))
    assert first == [[sample_seed(5, "grpo/0", i, turn) for i in range(2)] for turn in range(2)]
    assert not {seed for turn in first for seed in turn} & {seed for turn in second for seed in turn}
