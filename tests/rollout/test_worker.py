"""RolloutWorker's own work, on a fake engine: seeds, order, text, and what may not be trained on."""

import asyncio
import math
from dataclasses import replace

import pytest

from rollout.config import PromptConfig, RolloutConfig, ToolsConfig
from rollout.engine.engine import Engine
from rollout.types import Completion, FinishReason, Lease, Question, Sample, Sampling, sample_seed
from rollout.worker import RolloutWorker
from tests.rollout.test_prompts import CHAT, tokenizer_with

PLAIN = PromptConfig(template="plain")
SAMPLING = Sampling(temperature=1.0, max_new_tokens=8)


def lease(ordinal=17, indices=(0, 1), attempt=0) -> Lease:
    question = Question(ordinal=ordinal, id=f"q:{ordinal}", text="3 + 4 ?", gold="7", prompt_ids=(1, 7, 14, 8))
    return Lease(question=question, group_id=f"grpo/{ordinal}", indices=indices, attempt=attempt)


def completion(ids=(11, 2), logprobs=(-0.5, -0.25)) -> Completion:
    return Completion(output_ids=ids, logprobs=logprobs, versions=((4, 0),), finish_reason=FinishReason.STOP)


def run(model_dir, leases, completions, run_seed=5):
    """(samples of all groups, requests that reached the engine)."""
    seen = []

    async def generate(requests):
        seen.extend(requests)
        return completions

    arguments = {"prompt": PLAIN, "run_seed": run_seed, "max_model_len": 64, "generate_fn": generate}
    worker = RolloutWorker(RolloutConfig(), model_dir, **arguments)
    groups = asyncio.run(worker.generate(leases, SAMPLING, deadline_s=5))
    assert [(g.question, len(g.samples)) for g in groups] == [(x.question, len(x.indices)) for x in leases]
    return [s for group in groups for s in group.samples], seen


def test_a_sample_is_the_completion_with_its_place_and_its_text(tiny_model_dir):
    made = replace(completion(), guesses=(3, 1))
    [first, second], _ = run(tiny_model_dir, [lease(indices=(2, 5), attempt=1)], [made] * 2)
    assert first == Sample(
        ordinal=17, group_id="grpo/17", index=2, attempt=1, prompt_ids=(1, 7, 14, 8), output_ids=(11, 2),
        sampled_mask=(True, True), logprobs=(-0.5, -0.25), text="7", versions=((4, 0),), finish_reason=FinishReason.STOP,
        guesses=(3, 1),
    )  # fmt: skip
    assert second.index == 5 and not second.rejected


def test_members_reach_the_engine_in_order_with_seeds_of_their_own(tiny_model_dir):
    _, requests = run(tiny_model_dir, [lease(3, (1, 0)), lease(4, (0,))], [completion()] * 3)
    assert [r.seed for r in requests] == [sample_seed(5, g, i) for g, i in (("grpo/3", 1), ("grpo/3", 0), ("grpo/4", 0))]
    assert len({r.seed for r in requests}) == 3
    assert all(r.prompt_ids == (1, 7, 14, 8) and r.sampling == SAMPLING for r in requests)


def test_a_prompt_that_holds_part_of_an_output_leaves_room_for_the_rest_only(tiny_model_dir):
    long = Question(ordinal=0, id="q:0", text="3 + 4 ?", gold="7", prompt_ids=(1,) * 61)
    order = Lease(question=long, group_id="judge/0/0/step-1", indices=(0,), attempt=0)
    _, (request,) = run(tiny_model_dir, [order], [completion()])
    assert request.sampling == Sampling(temperature=1.0, max_new_tokens=3)


def test_a_retry_draws_the_same_seeds_and_another_run_does_not(tiny_model_dir):
    first, retry = (run(tiny_model_dir, [lease(attempt=a)], [completion()] * 2)[1] for a in (0, 1))
    assert first == retry
    assert run(tiny_model_dir, [lease()], [completion()] * 2, run_seed=6)[1] != first


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (completion(logprobs=(-0.5, math.nan)), "log-probability nan at token 1"),
        (completion(logprobs=(-math.inf, -0.5)), "log-probability -inf at token 0"),
        (completion(logprobs=(math.inf, -0.5)), "log-probability inf at token 0"),
        (completion(logprobs=(None, -0.5)), "log-probability None at token 0"),
        (completion(logprobs=(-0.5,)), "1 log-probabilities for 2 tokens"),
        (completion(ids=(11, 100)), "token id 100 at 1 is outside the tokenizer's vocabulary of 100"),
        (completion(ids=(-1, 2)), "token id -1 at 0 is outside the tokenizer's vocabulary of 100"),
        (completion(ids=(), logprobs=()), "the output has no tokens"),
    ],
)
def test_an_output_that_may_not_be_trained_on_is_rejected_alone_and_stays_in_its_group(tiny_model_dir, bad, reason):
    [rejected, other], _ = run(tiny_model_dir, [lease(attempt=2)], [bad, completion()])
    assert (rejected.rejected, other.rejected) == (reason, "")
    assert (rejected.group_id, rejected.index, rejected.attempt) == ("grpo/17", 0, 2)
    assert (rejected.output_ids, rejected.logprobs) == (bad.output_ids, ()), "what the engine gave, without numbers"


def test_text_leaves_out_every_special_token_even_when_pad_is_eos(tiny_model_dir):
    [sample], _ = run(tiny_model_dir, [lease(indices=(0,))], [completion(ids=(11, 15, 3), logprobs=(-1.0,) * 3)])
    assert sample.text == "7 -"
    assert sample.output_ids == (11, 15, 3)


def test_an_engine_that_loses_an_output_is_an_error(tiny_model_dir):
    with pytest.raises(ValueError, match="shorter"):
        run(tiny_model_dir, [lease()], [completion()])


def test_the_templates_end_of_turn_stops_the_engine_and_the_tool_loop(tmp_path, monkeypatch):
    tokenizer = tokenizer_with()
    tokenizer.save_pretrained(tmp_path)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    asked, engines = [], []

    async def generate(requests):
        asked.extend(requests)
        return [completion(ids=(11, end))]

    async def start(*args, **options):
        engines.append(options["stop_token_ids"])

    options = {"run_seed": 5, "max_model_len": 64, "generate_fn": generate}
    worker = RolloutWorker(RolloutConfig(tools=ToolsConfig()), tmp_path, prompt=CHAT, **options)
    [group] = asyncio.run(worker.generate([lease(indices=(0,))], SAMPLING, deadline_s=5))
    [sample] = group.samples
    assert (sample.output_ids, sample.finish_reason, len(asked)) == ((11, end), FinishReason.STOP, 1)
    monkeypatch.setattr(Engine, "start", start)
    asyncio.run(RolloutWorker(RolloutConfig(), tmp_path, prompt=CHAT, **options).start(None, "run-1"))
    assert engines == [(tokenizer.eos_token_id, end)]


def test_a_wave_that_is_abandoned_is_ended_and_so_is_whoever_streams_it(tiny_model_dir):
    begun, ended = asyncio.Event(), []

    async def generate(requests):
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(len(requests))

    async def abandoned():
        options = {"prompt": PLAIN, "run_seed": 5, "max_model_len": 64, "generate_fn": generate}
        worker = RolloutWorker(RolloutConfig(), tiny_model_dir, **options)
        first = asyncio.ensure_future(anext(worker.stream([lease(indices=(0, 1))], SAMPLING, 60)))
        await begun.wait()
        await worker.abandon()
        assert ended == [2]
        with pytest.raises(asyncio.CancelledError):
            await first
        await worker.abandon()

    asyncio.run(abandoned())
    assert ended == [2]


@pytest.mark.engine
def test_a_lease_becomes_samples_on_a_real_engine(tiny_model_dir, engine, engine_loop):
    worker = RolloutWorker(RolloutConfig(), tiny_model_dir, prompt=PLAIN, run_seed=5, max_model_len=64)
    worker._engine = engine
    (first, again) = (engine_loop.run(worker.generate([lease(), lease(18)], SAMPLING, deadline_s=60)) for _ in range(2))
    assert first == again
    made = [s for group in first for s in group.samples]
    assert [(s.group_id, s.index) for s in made] == [("grpo/17", 0), ("grpo/17", 1), ("grpo/18", 0), ("grpo/18", 1)]
    assert len({s.output_ids for s in made}) == 4
    assert all(len(s.logprobs) == len(s.output_ids) == len(s.sampled_mask) and not s.rejected for s in made)
