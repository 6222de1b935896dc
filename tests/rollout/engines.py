"""What the tests on a real engine share: waves, weights, and the same numbers by transformers."""

import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rollout.types import Sampling, TokenRequest
from rollout.weights.held import sum_of_bits
from rollout.weights.transfer import release, write_buckets

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


def sums_of(weights) -> dict[str, int]:
    """What a sender says of the weights that it sent."""
    return {name: sum_of_bits(tensor) for name, tensor in weights.items()}


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
        self.loop.run(self.engine.finish_weight_update(self.engine.version + 1, sums_of(weights)))
        return digest


def load(model_dir):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    return model, {n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=False)}


def other(weights, seed=1) -> dict:
    """Visibly different weights."""
    generator = torch.Generator().manual_seed(seed)
    return {n: t + 0.2 * torch.randn(t.shape, generator=generator) for n, t in weights.items()}


def flip_a_byte(manifest) -> None:
    path = Path("/dev/shm") / manifest.buckets[1].segment
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def serves(engine, loop, model) -> None:
    """The engine's weights are the model's."""
    [row] = loop.run(engine.logprobs(PROMPTS[:1]))
    assert row == pytest.approx(reference(model, PROMPTS[0][:1], PROMPTS[0][1:]), abs=2e-4)


def begun(engine) -> None:
    """Wait until an output that is under way has a token."""
    states, end = engine._llm.output_processor.request_states, time.monotonic() + 60
    while not any(state.detokenizer.num_output_tokens() for state in list(states.values())):
        assert time.monotonic() < end, "no token within 60 s"
        time.sleep(0.005)
