"""The engine against transformers."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from rollout.engine.engine import EngineError
from rollout.types import FinishReason
from tests.rollout.engines import PROMPTS, constant, reference, requests, serves


@pytest.mark.engine
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_logprobs_are_those_of_the_distribution_sampled_from(engine, engine_loop, model, temperature):
    wave = requests(PROMPTS * 3, temperature=temperature)
    for request, completion in zip(wave, engine_loop.run(engine.generate(wave)), strict=True):
        want = reference(model, request.prompt_ids, completion.output_ids, temperature)
        assert completion.logprobs == pytest.approx(want, abs=2e-4)
        assert completion.versions == ((engine.version, 0),)


@pytest.mark.engine
def test_logprobs_equal_transformers(engine, engine_loop, model):
    for prompt, row in zip(PROMPTS, engine_loop.run(engine.logprobs(PROMPTS)), strict=True):
        assert row == pytest.approx(reference(model, prompt[:1], prompt[1:]), abs=2e-4)


@pytest.mark.engine
def test_greedy_takes_the_most_likely_token(engine, engine_loop, model):
    [completion] = engine_loop.run(engine.generate(requests(PROMPTS[:1], temperature=0.0)))
    ids = torch.tensor([(*PROMPTS[0], *completion.output_ids)])
    best = model(ids).logits[0, len(PROMPTS[0]) - 1 : -1].argmax(-1)
    assert list(completion.output_ids) == best.tolist()


@pytest.mark.engine
def test_the_same_wave_gives_the_same_tokens_and_another_seed_does_not(engine, engine_loop):
    wave = requests([PROMPTS[0]] * 16)
    first, again = (engine_loop.run(engine.generate(wave)) for _ in range(2))
    assert first == again
    assert len({c.output_ids for c in first}) == 16
    assert engine_loop.run(engine.generate(requests([PROMPTS[0]] * 16, seed=1000))) != first


@pytest.mark.engine
def test_a_wave_with_more_prompt_tokens_than_an_engine_step_is_sampled_right(engine, engine_loop, model):
    wave = requests([(1, *(10 + (i + j) % 90 for j in range(299))) for i in range(40)], max_new_tokens=3)
    wrong = []
    for request, completion in zip(wave, engine_loop.run(engine.generate(wave)), strict=True):
        want = reference(model, request.prompt_ids, completion.output_ids)
        wrong += [abs(a - b) for a, b in zip(completion.logprobs, want, strict=True)]
    # Usually 5e-6; 6e-4 was seen at one token on another processor. One key of 300 missing moves a log-probability by 1e-2.
    assert max(wrong) < 2e-3 and sum(wrong) / len(wrong) < 1e-4, sorted(wrong)


@pytest.mark.engine
def test_the_stop_token_is_kept_with_its_logprob_for_every_eos_id(engine, engine_loop, updates):
    updates.publish(constant(updates.weights, {2: 0.0, 3: 0.0, 50: 2.0}, rest=-60.0))
    completions = engine_loop.run(engine.generate(requests([(1, 2, 5)] * 24, max_new_tokens=200)))
    logp_50, logp_stop = torch.tensor([2.0, 0.0, 0.0]).log_softmax(0).tolist()[:2]
    assert {c.output_ids[-1] for c in completions} == {2, 3}
    for completion in completions:
        assert set(completion.output_ids[:-1]) <= {50}
        want = [logp_50] * (len(completion.output_ids) - 1) + [logp_stop]
        assert completion.logprobs == pytest.approx(want, abs=2e-4)
        assert completion.finish_reason is FinishReason.STOP


@pytest.mark.engine
def test_an_immediate_stop_is_an_output_of_one_token(engine, engine_loop, updates):
    updates.publish(constant(updates.weights, {2: 0.0}, rest=-100.0))
    [completion] = engine_loop.run(engine.generate(requests([(1, 5)])))
    assert completion.output_ids == (2,)
    assert completion.logprobs == pytest.approx((0.0,), abs=1e-6)
    assert completion.finish_reason is FinishReason.STOP


@pytest.mark.engine
def test_padding_of_the_vocabulary_is_never_sampled_and_length_ends_an_output(engine, engine_loop, updates):
    updates.publish(constant(updates.weights, {2: -500.0, 3: -500.0}, rest=-200.0))
    completions = engine_loop.run(engine.generate(requests([(1,)] * 32, max_new_tokens=40)))
    assert {c.finish_reason for c in completions} == {FinishReason.LENGTH}
    assert {len(c.output_ids) for c in completions} == {40}
    assert max(token for c in completions for token in c.output_ids) < 100
    assert completions[0].logprobs == pytest.approx([-torch.tensor(98.0).log().item()] * 40, abs=1e-4)


@pytest.mark.engine
def test_a_wave_past_its_deadline_is_an_error_and_the_engine_serves_on(engine, engine_loop, model):
    with pytest.raises(EngineError, match="no answer within 0.2 s"):
        engine_loop.run(engine.generate(requests(PROMPTS, max_new_tokens=340), deadline_s=0.2))
    serves(engine, engine_loop, model)
    assert engine._llm.get_num_unfinished_requests() == 0


@pytest.mark.engine
def test_a_pause_token_hands_the_output_back_with_what_was_sampled_until_then(engine, engine_loop):
    [request] = requests(PROMPTS[:1], temperature=0.0)
    [whole] = engine_loop.run(engine.generate([request]))
    token = whole.output_ids[5]
    end = whole.output_ids.index(token) + 1
    [part] = engine_loop.run(engine.generate([replace(request, pauses=(token,))]))
    assert part.output_ids == whole.output_ids[:end] and part.finish_reason is FinishReason.STOP
    assert part.logprobs == pytest.approx(whole.logprobs[:end], abs=1e-4)


@pytest.mark.engine
def test_an_engine_answers_a_pulse_while_it_samples_and_not_while_its_core_is_stopped(engine, engine_loop):
    wave = engine_loop.submit(engine.generate(requests(PROMPTS * 8, max_new_tokens=340)))
    engine_loop.run(engine.pulse(), timeout=20)
    assert not wave.done()
    core = engine.describe()["pids"][0]
    os.kill(core, signal.SIGSTOP)
    try:
        asked = engine_loop.submit(engine.pulse())
        with pytest.raises(TimeoutError):
            asked.result(1)
    finally:
        os.kill(core, signal.SIGCONT)
    asked.result(20)
    assert len(wave.result(60)) == len(PROMPTS) * 8
