"""The canary on a real engine: what it holds is made wrong on purpose, the way weight updates have gone wrong elsewhere."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.sync import Canary, CanaryFailed
from rollout.transfer import release, write_buckets

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


@pytest.fixture(scope="module")
def updated(engine, engine_loop, tiny_model_dir, weight_source):
    """Function of a spoiler: (canary, engine's log-probabilities, learner's) after an update that went wrong that way."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(5)
    new = {name: p + 0.1 * torch.randn_like(p) for name, p in old.items()}

    def publish(weights):
        version = engine.version + 1
        manifest = write_buckets(weight_source(weights), prefix="test", version=version)
        try:
            engine_loop.run(engine.start_weight_update())
            engine_loop.run(engine.update_weights({"manifest": manifest.to_dict()}))
        finally:
            release(manifest)
        engine_loop.run(engine.finish_weight_update(version))

    def update(spoil):
        publish(old)
        model.load_state_dict(old)
        canary = Canary.calibrate(SEQUENCES, {0: engine_loop.run(engine.score(SEQUENCES))}, logprobs(model), "float32")
        model.load_state_dict(new)
        publish(spoil(new, old))
        return canary, engine_loop.run(engine.score(SEQUENCES)), logprobs(model)

    yield update
    publish(old)


def test_a_right_update_passes_far_below_the_tolerance(updated):
    canary, engine, learner = updated(right)
    assert canary.check(0, engine, learner) < canary.tolerance / 4


@pytest.mark.parametrize("spoil", [stale_head, missing_layer, swapped_tensors])
def test_the_canary_catches(updated, spoil):
    canary, engine, learner = updated(spoil)
    with pytest.raises(CanaryFailed, match="rollout-0 does not hold the published weights"):
        canary.check(0, engine, learner)
