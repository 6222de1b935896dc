"""Outputs of an engine whose tokens are guessed ahead are those of the policy, by transformers' numbers."""

import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from rollout.speculation import spread
from tests.rollout.engines import Updates, begun, load, reference, requests, sums_of

PROMPTS = [(1, 5, 6, 7, 5, 6, 7, 5, 6), (1, 9, 9, 9), (1, *range(10, 60), *range(10, 60))]


def near(weights, seed=1):
    """Weights that often say the same."""
    generator = torch.Generator().manual_seed(seed)
    return {name: t + 0.02 * torch.randn(t.shape, generator=generator) for name, t in weights.items()}


@pytest.fixture(scope="module")
def policy(make_tiny_model, tmp_path_factory):
    """A tiny model that is sure of itself, and so repeats itself."""
    directory = make_tiny_model(tmp_path_factory.mktemp("policy"))
    _, weights = load(directory)
    weights["lm_head.weight"] *= 4
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return SimpleNamespace(directory=directory, model=load(directory)[0], weights=weights)


@pytest.fixture(scope="module", params=["ngram", "draft"])
def guessing(request, policy, make_tiny_model, tmp_path_factory, start_engine, engine_loop):
    """An engine that guesses by what came before, or by a model with other weights."""
    speculative = {"tokens": 3}
    if request.param == "draft":
        speculative["model"] = make_tiny_model(tmp_path_factory.mktemp("draft"))
        save_file(near(policy.weights), speculative["model"] / "model.safetensors", metadata={"format": "pt"})
    engine = start_engine(policy.directory, speculative=speculative)
    yield engine
    engine_loop.run(engine.shutdown())


@pytest.fixture
def updates(guessing, engine_loop, policy, weight_source):
    updates = Updates(guessing, engine_loop, policy.weights, weight_source)
    yield updates
    updates.publish(policy.weights)
    policy.model.load_state_dict(policy.weights)


def logprobs(model, request, output) -> torch.Tensor:
    """(T, V) of each of its tokens, in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([(*request.prompt_ids, *output)])).logits[0, len(request.prompt_ids) - 1 : -1].double()
    return (logits / (request.sampling.temperature or 1.0)).log_softmax(-1)


def check(engine, loop, model, temperature):
    """Each log-probability is the policy's. The tokens are drawn from it if their mean log-probability, and how often one
    is the likeliest, are off by no more than a few standard deviations."""
    wave = requests(PROMPTS * 60, temperature=temperature, max_new_tokens=32)
    off, variance, completions = [0.0, 0.0], [0.0, 0.0], loop.run(engine.generate(wave))
    for request, completion in zip(wave, completions, strict=True):
        logp_TV, output_T1 = logprobs(model, request, completion.output_ids), torch.tensor(completion.output_ids)[:, None]
        assert completion.logprobs == pytest.approx(logp_TV.gather(1, output_T1)[:, 0].tolist(), abs=2e-3)
        best_TV = torch.nn.functional.one_hot(logp_TV.argmax(-1), logp_TV.shape[-1]).double()
        for i, x_TV in enumerate((logp_TV, best_TV)):
            mean_T = (logp_TV.exp() * x_TV).sum(-1)
            off[i] += (x_TV.gather(1, output_T1)[:, 0] - mean_T).sum().item()
            variance[i] += ((logp_TV.exp() * x_TV**2).sum(-1) - mean_T**2).sum().item()
    deviations = [a / math.sqrt(b) for a, b in zip(off, variance, strict=True)]
    guessed, taken = (sum(numbers) for numbers in zip(*(c.guesses for c in completions), strict=True))
    assert max(map(abs, deviations)) < 4 and 50 < taken < guessed, (deviations, guessed, taken)
    assert all(c.versions == ((engine.version, 0),) for c in completions)
    return completions


@pytest.mark.engine
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_outputs_and_their_logprobs_are_the_policys_and_the_same_again(guessing, engine_loop, policy, temperature):
    first = check(guessing, engine_loop, policy.model, temperature)
    assert check(guessing, engine_loop, policy.model, temperature) == first


@pytest.mark.engine
def test_greedy_takes_the_most_likely_token(guessing, engine_loop, policy):
    wave = requests(PROMPTS, temperature=0.0, max_new_tokens=48)
    for request, completion in zip(wave, engine_loop.run(guessing.generate(wave)), strict=True):
        assert list(completion.output_ids) == logprobs(policy.model, request, completion.output_ids).argmax(-1).tolist()


@pytest.mark.engine
def test_new_weights_are_the_policys_whatever_guesses(guessing, engine_loop, policy, updates):
    updates.publish(new := near(policy.weights, seed=2))
    policy.model.load_state_dict(new)
    check(guessing, engine_loop, policy.model, 1.0)


@pytest.mark.engine
def test_weights_that_meet_outputs_on_their_way_make_the_rest_of_these(guessing, engine_loop, policy, updates):
    updates.prepare(new := near(policy.weights, seed=2))
    prompt, old = PROMPTS[2], guessing.version
    flying = engine_loop.submit(guessing.generate(requests([prompt] * 96, max_new_tokens=340)))
    begun(guessing)
    engine_loop.run(guessing.finish_weight_update(old + 1, sums_of(new)))
    changed = [c for c in flying.result(300) if len(c.versions) == 2]
    assert changed and all([version for version, _ in c.versions] == [old, old + 1] for c in changed)
    heads = [c.output_ids[: c.versions[1][1]] for c in changed]
    for c, head in zip(changed, heads, strict=True):
        assert c.logprobs[: len(head)] == pytest.approx(reference(policy.model, prompt, head), abs=2e-3)
    policy.model.load_state_dict(new)
    for c, head in zip(changed, heads, strict=True):
        rest = reference(policy.model, prompt + head, c.output_ids[len(head) :])
        assert c.logprobs[len(head) :] == pytest.approx(rest, abs=2e-3)


def test_a_value_of_each_request_is_that_of_each_of_its_tokens():
    found = spread(torch.tensor([0.5, 0.0, 1.5, 2.0]), torch.tensor([2, 3, 3, 6], dtype=torch.int32), 6, 0, 1)
    assert found.tolist() == [0.5, 0.5, 1.0, 2.0, 2.0, 2.0]
