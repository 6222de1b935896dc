"""The engine against transformers, and weight updates as the next sample sees them."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

import rollout.requests as requests_
from rollout.engine import Engine, EngineError
from rollout.transfer import release, write_buckets
from rollout.types import FinishReason, Sampling, TokenRequest

PROMPTS = [(1, 5, 6, 7), (1, 9), (1, 2, 2, 40, 41, 3), (1, *range(10, 90), *range(20, 95))]


def requests(prompts, *, temperature=1.0, max_new_tokens=24, seed=0):
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    return [TokenRequest(prompt_ids=tuple(p), seed=seed + i, sampling=sampling) for i, p in enumerate(prompts)]


def reference(model, prompt, output, temperature=1.0) -> list[float]:
    """log softmax(logits / T) of each output token, by transformers."""
    ids = torch.tensor([(*prompt, *output)])
    with torch.no_grad():
        logprobs = (model(ids).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return logprobs.gather(1, torch.tensor(output)[:, None])[:, 0].tolist()


def constant(weights: dict, logits: dict[int, float], rest: float = 0.0) -> dict:
    """Weights under which the logits are these numbers at every position: the hidden state is all ones."""
    new = {name: torch.zeros_like(t) if "proj" in name else torch.ones_like(t) for name, t in weights.items()}
    head = torch.full_like(weights["lm_head.weight"], rest / 64)
    for token, logit in logits.items():
        head[token] = logit / 64
    return new | {"lm_head.weight": head}


class Updates:
    """Weight updates of one engine, by the engine's own two phases."""

    def __init__(self, engine, loop, weights, source) -> None:
        self.engine, self.loop, self.weights, self.source = engine, loop, weights, source
        named = [(m.name, str(m.dtype).removeprefix("torch."), list(m.shape)) for m in source(weights).metadata()]
        loop.run(engine.init_transfer(dict(zip(("names", "dtype_names", "shapes"), zip(*named, strict=True), strict=True))))

    def prepare(self, weights, tamper=lambda manifest: None) -> str:
        manifest = write_buckets(self.source(weights), prefix="test", version=self.engine.version + 1, bucket_bytes=2**16)
        try:
            tamper(manifest)
            self.loop.run(self.engine.start_weight_update())
            digest = self.loop.run(self.engine.update_weights({"manifest": manifest.to_dict()}))
            assert digest == manifest.digest
            return digest
        finally:
            release(manifest)

    def publish(self, weights) -> str:
        digest = self.prepare(weights)
        self.loop.run(self.engine.finish_weight_update(self.engine.version + 1))
        return digest


def load(model_dir):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    return model, {n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=False)}


def other(weights, seed=1) -> dict:
    """Visibly different weights."""
    generator = torch.Generator().manual_seed(seed)
    return {n: t + 0.2 * torch.randn(t.shape, generator=generator) for n, t in weights.items()}


@pytest.fixture(scope="module")
def original(tiny_model_dir):
    return load(tiny_model_dir)


@pytest.fixture
def model(original):
    model, weights = original
    model.load_state_dict(weights)
    return model


@pytest.fixture
def updates(engine, engine_loop, original, weight_source):
    updates = Updates(engine, engine_loop, original[1], weight_source)
    yield updates
    updates.publish(original[1])


@pytest.mark.engine
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_logprobs_are_those_of_the_distribution_sampled_from(engine, engine_loop, model, temperature):
    wave = requests(PROMPTS * 3, temperature=temperature)
    for request, completion in zip(wave, engine_loop.run(engine.generate(wave)), strict=True):
        want = reference(model, request.prompt_ids, completion.output_ids, temperature)
        assert completion.logprobs == pytest.approx(want, abs=2e-4)
        assert completion.versions == ((engine.version, 0),)


@pytest.mark.engine
def test_scores_equal_transformers(engine, engine_loop, model):
    for prompt, row in zip(PROMPTS, engine_loop.run(engine.score(PROMPTS)), strict=True):
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
    for request, completion in zip(wave, engine_loop.run(engine.generate(wave)), strict=True):
        want = reference(model, request.prompt_ids, completion.output_ids)
        assert completion.logprobs == pytest.approx(want, abs=5e-4)


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
def test_the_next_sample_comes_from_the_new_weights(engine, engine_loop, updates, model):
    new = other(updates.weights)
    before = engine_loop.run(engine.score(PROMPTS))
    digest = updates.publish(new)
    model.load_state_dict(new)
    after = engine_loop.run(engine.score(PROMPTS))
    assert max(abs(a - b) for rows in zip(before, after, strict=True) for a, b in zip(*rows, strict=True)) > 1
    for request, completion in zip(wave := requests(PROMPTS), engine_loop.run(engine.generate(wave)), strict=True):
        assert completion.logprobs == pytest.approx(reference(model, request.prompt_ids, completion.output_ids), abs=2e-4)
        assert completion.versions == ((engine.version, 0),)
    assert digest != updates.prepare(updates.weights)


@pytest.mark.engine
def test_a_commit_reaches_requests_in_flight_and_the_prefixes_they_cached(engine, engine_loop, updates, model):
    prompt, new, old_version = PROMPTS[3], other(updates.weights), engine.version
    updates.prepare(new)
    # Several waves of what fits at once, so that some are in flight at the commit however fast the machine is.
    flying = engine_loop.submit(engine.generate(requests([prompt] * 256, temperature=0.0, max_new_tokens=340)))
    engine_loop.run(asyncio.sleep(0.4))
    engine_loop.run(engine.finish_weight_update(old_version + 1))
    late = flying.result(300)[-1]
    completion = next(c for c in flying.result() if len(c.versions) == 2)
    (first, start), (second, split) = completion.versions
    assert (first, start, second) == (old_version, 0, old_version + 1)
    assert 0 < split < len(completion.output_ids)
    head, tail = completion.output_ids[:split], completion.output_ids[split:]
    assert completion.logprobs[:split] == pytest.approx(reference(model, prompt, head), abs=1e-3)
    model.load_state_dict(new)
    assert completion.logprobs[split:] == pytest.approx(reference(model, prompt + head, tail), abs=1e-3)
    assert late.versions == ((old_version + 1, 0),)
    assert late.logprobs == pytest.approx(reference(model, prompt, late.output_ids), abs=1e-3)


def flip_a_byte(manifest) -> None:
    path = Path("/dev/shm") / manifest.buckets[1].segment
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def serves(engine, loop, model) -> None:
    """The engine's weights are the model's."""
    [row] = loop.run(engine.score(PROMPTS[:1]))
    assert row == pytest.approx(reference(model, PROMPTS[0][:1], PROMPTS[0][1:]), abs=2e-4)


@pytest.mark.engine
def test_bytes_changed_on_the_way_are_refused_and_the_old_version_serves(engine, engine_loop, updates, model):
    version, new = engine.version, other(updates.weights)
    with pytest.raises(EngineError, match=rf"version {version} still serves.*tensor '[\w.]+' in cohort_test_.*received sha256"):
        updates.prepare(new, tamper=flip_a_byte)
    with pytest.raises(EngineError, match="no weights are prepared"):
        engine_loop.run(engine.finish_weight_update(version + 1))
    assert engine.version == version
    serves(engine, engine_loop, model)
    updates.publish(new)
    assert engine.version == version + 1
    model.load_state_dict(new)
    serves(engine, engine_loop, model)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), "'lm_head.weight' is missing"),
        (lambda w: w.update({"model.rotary.weight": torch.zeros(2)}), "'model.rotary.weight' is not a tensor of this model"),
        (lambda w: w.update({"model.norm.weight": torch.ones(65)}), r"'model.norm.weight' is \('float32', \(65,\)\), expected"),
        (lambda w: w.update({"model.norm.weight": torch.ones(64).bfloat16()}), "'model.norm.weight' is .'bfloat16'"),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_weights_of_another_model_are_refused_by_name(engine, engine_loop, updates, model, change, message):
    wrong = dict(updates.weights)
    change(wrong)
    with pytest.raises(EngineError, match=message):
        updates.prepare(wrong)
    serves(engine, engine_loop, model)


@pytest.mark.engine
def test_a_wave_past_its_deadline_is_an_error_and_the_engine_serves_on(engine, engine_loop, model):
    with pytest.raises(EngineError, match="no answer within 0.2 s"):
        engine_loop.run(engine.generate(requests(PROMPTS, max_new_tokens=340), deadline_s=0.2))
    serves(engine, engine_loop, model)
    assert engine._llm.get_num_unfinished_requests() == 0


@pytest.mark.engine
def test_a_tied_head_follows_and_shutdown_leaves_nothing(make_tiny_model, start_engine, engine_loop, tmp_path, weight_source):
    model, weights = load(make_tiny_model(tmp_path, tied=True))
    assert weights["lm_head.weight"].equal(weights["model.embed_tokens.weight"])
    engine = start_engine(tmp_path)
    try:
        new = other(weights)
        new["lm_head.weight"] = new["model.embed_tokens.weight"]
        updates = Updates(engine, engine_loop, weights, weight_source)
        serves(engine, engine_loop, model)
        updates.publish(new)
        model.load_state_dict(new)
        serves(engine, engine_loop, model)
        described = engine.describe()
        assert {"device": "cpu", "dtype": "float32"}.items() <= described.items()
        assert all(Path(f"/proc/{pid}").exists() for pid in described["pids"])
        segments = [engine._record, *(engine._record.parent / s for s in json.loads(engine._record.read_text())["segments"])]
        assert len(segments) > 1
        assert all(segment.exists() for segment in segments)
    finally:
        engine_loop.run(engine.shutdown())
    assert not [pid for pid in described["pids"] if Path(f"/proc/{pid}").exists()]
    assert not [segment for segment in segments if segment.exists()]


class FakeLLM:
    """Answers everything with None, except for what a test sets."""

    def __init__(self, **answers) -> None:
        self.answers, self.calls = answers, []

    def __getattr__(self, name):
        async def call(*args, **kwargs):
            self.calls.append(name)
            answer = self.answers.get(name)
            return answer(*args) if callable(answer) else answer

        return call


def staged(llm) -> Engine:
    """An engine on a fake with an update prepared."""
    engine = Engine(llm, transport="shm", stop_token_ids=(2,), prefix="fake")
    llm.answers["collective_rpc"] = lambda method: [{"digest": "d", "error": ""}] if method == "staged_weights" else None
    asyncio.run(engine.start_weight_update())
    asyncio.run(engine.update_weights({"manifest": {}}))
    return engine


def test_a_prefix_cache_that_stays_fails_the_commit_and_takes_the_engine_out_of_service():
    llm = FakeLLM(reset_prefix_cache=False)
    engine = staged(llm)
    with pytest.raises(EngineError, match="commit of version 5|prefix cache"):
        asyncio.run(engine.finish_weight_update(5))
    assert engine.version == 0
    assert "resume_generation" not in llm.calls
    for call in (engine.generate([]), engine.score([]), engine.start_weight_update()):
        with pytest.raises(EngineError, match="out of service: the commit of version 5 did not finish"):
            asyncio.run(call)


def test_a_commit_pauses_loads_drops_the_cache_and_resumes_in_this_order():
    llm = FakeLLM(reset_prefix_cache=True)
    engine = staged(llm)
    llm.calls.clear()
    asyncio.run(engine.finish_weight_update(5))
    assert llm.calls == ["pause_generation", "finish_weight_update", "reset_prefix_cache", "resume_generation"]
    assert engine.version == 5


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_an_output_that_neither_stopped_nor_reached_its_length_is_an_error(reason):
    made = SimpleNamespace(finish_reason=reason, token_ids=[5], logprobs=[], weight_versions=None)
    with pytest.raises(ValueError, match="vLLM ended a request with"):
        requests_.completion(SimpleNamespace(outputs=[made]), 0)


def test_a_streaming_transport_holds_the_engine_from_start_to_finish():
    async def run() -> list[str]:
        engine = Engine(llm, transport="nccl", stop_token_ids=(2,), prefix="fake")
        await engine.start_weight_update()
        with pytest.raises(EngineError, match="no answer within 0.05 s"):
            await engine.generate([], deadline_s=0.05)
        llm.calls.clear()
        await engine.update_weights({})
        await engine.finish_weight_update(1)
        assert engine.version == 1
        return llm.calls

    llm = FakeLLM(reset_prefix_cache=True)
    steps = ["pause_generation", "finish_weight_update", "reset_prefix_cache", "resume_generation"]
    assert asyncio.run(run()) == ["abort", "update_weights", *steps][1:]
