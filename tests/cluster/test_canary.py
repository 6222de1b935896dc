"""The canary on a real engine: what it holds is made wrong on purpose, the way weight updates have gone wrong elsewhere."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.fleet.weight_update import FLOOR, Canary, CanaryFailed, differences
from rollout.engine.engine import EngineError
from rollout.weights.transfer import release, write_buckets
from tests.rollout.engines import sums_of

pytestmark = pytest.mark.engine
SEQUENCES = [[1, 5, 6, 7, 30, 31], [1, 9, 40, 2, 77], list(range(10, 60))]


def logprobs(model, sequences=SEQUENCES):
    """The learner's side, by transformers: log-probability of each token after the first."""
    out = []
    with torch.no_grad():
        for ids in sequences:
            rows = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
            out.append(rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist())
    return out


def stale_head(new, old):
    return {**new, "lm_head.weight": old["lm_head.weight"]}


def missing_layer(new, old):
    return {name: old[name] if "layers.1." in name else tensor for name, tensor in new.items()}


def swapped_tensors(new, old):
    a, b = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    return {**new, a: new[b], b: new[a]}


def right(new, old):
    return new


def publish(engine, loop, source, weights, sums):
    """An update by the engine's phases, of which the sender says these sums."""
    version = engine.version + 1
    manifest = write_buckets(source(weights), prefix="test", version=version)
    try:
        loop.run(engine.start_weight_update())
        loop.run(engine.update_weights({"manifest": manifest.to_dict()}))
    finally:
        release(manifest)
    loop.run(engine.finish_weight_update(version, sums))


@pytest.fixture(scope="module")
def updated(engine, engine_loop, tiny_model_dir, weight_source):
    """Function of a spoiler: (canary, engine's log-probabilities, learner's) after an update that went wrong that way, and that
    no sum tells of."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(5)
    new = {name: p + 0.1 * torch.randn_like(p) for name, p in old.items()}

    def update(spoil):
        publish(engine, engine_loop, weight_source, old, {})
        model.load_state_dict(old)
        canary = Canary.calibrate(SEQUENCES, {0: engine_loop.run(engine.logprobs(SEQUENCES))}, logprobs(model), "float32")
        model.load_state_dict(new)
        publish(engine, engine_loop, weight_source, spoil(new, old), {})
        return canary, engine_loop.run(engine.logprobs(SEQUENCES)), logprobs(model)

    yield update
    publish(engine, engine_loop, weight_source, old, {})


def test_a_right_update_passes_far_below_the_tolerance(updated):
    canary, engine, learner = updated(right)
    assert canary.check(0, engine, learner) < canary.tolerance / 4


@pytest.mark.parametrize("spoil", [stale_head, missing_layer, swapped_tensors])
def test_the_canary_catches(updated, spoil):
    canary, engine, learner = updated(spoil)
    with pytest.raises(CanaryFailed, match="rollout-0 does not hold the published weights"):
        canary.check(0, engine, learner)


def test_one_missed_update_in_bfloat16_and_one_missed_tensor_of_it_are_refused(
    start_engine, engine_loop, tiny_model_dir, weight_source
):
    """An update of reinforcement learning, 3e-6 a weight, is far below what log-probabilities in bfloat16 can tell."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    masters = {name: p.detach() for name, p in model.named_parameters()}
    torch.manual_seed(6)
    moved = {name: p + 3e-6 * torch.randn_like(p).sign() for name, p in masters.items()}
    old, new = ({name: p.bfloat16() for name, p in weights.items()} for weights in (masters, moved))
    changed = [name for name in new if not new[name].equal(old[name])]
    assert {"lm_head.weight", "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"} <= set(changed)
    engine = start_engine(tiny_model_dir, dtype="bfloat16")
    try:
        publish(engine, engine_loop, weight_source, old, sums_of(old))
        before = engine_loop.run(engine.logprobs(SEQUENCES))
        for missed in ([*new], *([name] for name in changed)):
            with pytest.raises(EngineError, match="weights are not what was sent"):
                publish(engine, engine_loop, weight_source, new | {name: old[name] for name in missed}, sums_of(new))
            engine._broken = ""  # back in service, for the next
        publish(engine, engine_loop, weight_source, new, sums_of(new))
        after = engine_loop.run(engine.logprobs(SEQUENCES))
        assert sum(differences(after, before)) / len(differences(after, before)) < 2 * FLOOR["bfloat16"]
    finally:
        engine_loop.run(engine.shutdown())
