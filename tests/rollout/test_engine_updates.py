"""Weight updates as the next sample of a real engine sees them, by its own phases and by the senders."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rollout.engine.engine import EngineError
from rollout.leftovers import running
from rollout.weights.senders import make_trainer
from tests.rollout.engines import PROMPTS, Updates, begun, flip_a_byte, load, other, reference, requests, serves, sums_of
from tests.rollout.test_weights import segments


@pytest.mark.engine
def test_the_next_sample_comes_from_the_new_weights(engine, engine_loop, updates, model):
    new = other(updates.weights)
    before = engine_loop.run(engine.logprobs(PROMPTS))
    digest = updates.publish(new)
    model.load_state_dict(new)
    after = engine_loop.run(engine.logprobs(PROMPTS))
    assert max(abs(a - b) for rows in zip(before, after, strict=True) for a, b in zip(*rows, strict=True)) > 1
    for request, completion in zip(wave := requests(PROMPTS), engine_loop.run(engine.generate(wave)), strict=True):
        assert completion.logprobs == pytest.approx(reference(model, request.prompt_ids, completion.output_ids), abs=2e-4)
        assert completion.versions == ((engine.version, 0),)
    assert digest != updates.prepare(updates.weights)


@pytest.mark.engine
def test_a_commit_reaches_requests_in_flight_and_the_prefixes_they_cached(engine, engine_loop, updates, model):
    prompt, new, old_version = PROMPTS[3], other(updates.weights), engine.version
    updates.prepare(new)
    # Several waves of what fits at once, so that others begin after the commit.
    flying = engine_loop.submit(engine.generate(requests([prompt] * 96, temperature=0.0, max_new_tokens=340)))
    begun(engine)
    engine_loop.run(engine.finish_weight_update(old_version + 1, sums_of(new)))
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


@pytest.mark.engine
def test_kept_keys_and_values_are_those_of_the_older_weights_and_no_later_request_finds_them(
    engine, engine_loop, updates, model, monkeypatch
):
    prompt, new, old_version = PROMPTS[3], other(updates.weights), engine.version
    monkeypatch.setattr(engine, "_keep_kv", True)
    updates.prepare(new)
    flying = engine_loop.submit(engine.generate(requests([prompt] * 8, temperature=0.0, max_new_tokens=340)))
    begun(engine)
    engine_loop.run(engine.finish_weight_update(old_version + 1, sums_of(new)))
    late = engine_loop.submit(engine.generate(requests([prompt])))
    completion = next(c for c in flying.result(300) if len(c.versions) == 2)
    split = completion.versions[1][1]
    head, tail = completion.output_ids[:split], completion.output_ids[split:]
    with torch.no_grad():
        cache = model(torch.tensor([(*prompt, *head[:-1])])).past_key_values
        model.load_state_dict(new)
        logits = model(torch.tensor([(head[-1], *tail[:-1])]), past_key_values=cache).logits[0]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(tail)[:, None])[:, 0].tolist()
    assert completion.logprobs[split:] == pytest.approx(expected, abs=1e-3)
    anew = reference(model, prompt + head, tail)
    assert max(abs(a - b) for a, b in zip(expected, anew, strict=True)) > 0.01, "computed anew it would be something else"
    [other_one] = late.result(300)
    assert other_one.logprobs == pytest.approx(reference(model, prompt, other_one.output_ids), abs=1e-3)


@pytest.mark.engine
def test_bytes_changed_on_the_way_are_refused_and_the_old_version_serves(engine, engine_loop, updates, model):
    version, new = engine.version, other(updates.weights)
    with pytest.raises(EngineError, match=rf"version {version} still serves.*tensor '[\w.]+' in cohort_test_.*received blake3"):
        updates.prepare(new, tamper=flip_a_byte)
    with pytest.raises(EngineError, match="no weights are prepared"):
        engine_loop.run(engine.finish_weight_update(version + 1, {}))
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
def test_a_tied_head_follows_on_two_ranks_and_nothing_is_left(
    make_tiny_model, start_engine, engine_loop, tmp_path, weight_source
):
    model, weights = load(make_tiny_model(tmp_path, tied=True))
    assert weights["lm_head.weight"].equal(weights["model.embed_tokens.weight"])
    engine = start_engine(tmp_path, tensor_parallel_size=2)
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
        assert len(described["pids"]) == 3 and all(Path(f"/proc/{pid}").exists() for pid in described["pids"])
        segments = [engine._record, *(engine._record.parent / s for s in json.loads(engine._record.read_text())["segments"])]
        assert len(segments) > 1 and segments[0].exists()
        maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in described["pids"])
        memory = [path for path in segments if path.name.startswith("psm_")]
        assert memory and all(f"{path} (deleted)" in maps and not path.exists() for path in memory), "freed however they end"
        assert any(path.is_socket() for path in engine._folder.iterdir())
    finally:
        engine_loop.run(engine.shutdown())
    assert not [pid for pid in described["pids"] if running(pid)]
    assert not [path for path in [*segments, engine._folder] if path.exists()]


class Remote:
    """The client over the engine's event loop."""

    def __init__(self, engine, loop) -> None:
        self._engine, self._loop, self.failed, self.processes = engine, loop, {}, 1

    def init_weight_transfer_engine(self, info):
        self._loop.run(self._engine.init_transfer(info))

    def update_weights(self, info):
        self._loop.run(self._engine.update_weights(info))


def check_updates(transport, engine, loop, original, source) -> None:
    """Send changed weights and the first ones again; the engine's log-probabilities follow and so does the digest."""
    prompt = [(1, 5, 6, 7)]
    first_logprobs = loop.run(engine.logprobs(prompt))
    where = {"rank": 0, "prefix": "test", "address": "127.0.0.1"}
    trainer = None
    digests, logprobs = [], []
    for weights_sent in ({}, {"model.norm.weight": 2 * original["model.norm.weight"]}, {}):
        source.tensors = original | weights_sent
        loop.run(engine.start_weight_update())
        trainer = trainer or make_trainer(transport, source=source, client=Remote(engine, loop), **where)
        trainer.version = engine.version + 1
        trainer.send_weights()
        loop.run(engine.finish_weight_update(trainer.version, trainer.sums))
        digests.append(trainer.digest)
        logprobs.append(loop.run(engine.logprobs(prompt)))
    assert logprobs[0] == logprobs[2] == first_logprobs != logprobs[1]
    assert digests[0] == digests[2] != digests[1]
    trainer.shutdown()


@pytest.mark.engine
def test_the_shm_pair_updates_a_real_engine(engine, engine_loop, tiny_model_dir, weight_source):
    original, before = load_file(Path(tiny_model_dir) / "model.safetensors"), segments()
    check_updates("shm", engine, engine_loop, original, weight_source(original))
    assert segments() == before


@pytest.mark.engine
@pytest.mark.parametrize(("transport", "gpus"), [("ipc", 1), ("nccl", 2)])
def test_a_streaming_pair_updates_a_real_engine(transport, gpus, start_engine, engine_loop, tiny_model_dir, weight_source):
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"{transport} needs {gpus} GPU(s), the last for the sender; here are {torch.cuda.device_count()}")
    engine = start_engine(tiny_model_dir, transport=transport, gpu_memory_utilization=0.3)
    try:
        torch.cuda.set_device(gpus - 1)
        original = load_file(Path(tiny_model_dir) / "model.safetensors", device=f"cuda:{gpus - 1}")
        check_updates(transport, engine, engine_loop, original, weight_source(original))
    finally:
        engine_loop.run(engine.shutdown())
