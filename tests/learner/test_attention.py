"""The forms of attention that a packed row can have, against each other and against each output alone."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import flex_attention
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from learner.algorithms.credit import Ones
from learner.models import policy as policies
from learner.models.policy import takes_blocks, visible
from tests.learner.builders import credit, load_policy, pack, plain_logprobs, random_batch, scored
from tests.learner.test_supported import GROUPED, WINDOWED, written

WINDOWS = {"none": {}, "longer": {"sliding_window": 16}, "shorter": {"sliding_window": 4}}


@pytest.mark.parametrize("window", WINDOWS)
def test_rows_of_one_output_are_causal_without_a_mask_to_rounding(tmp_path, window):
    config = MistralConfig(**GROUPED, **({"sliding_window": None} | WINDOWS[window]))
    policy = load_policy(written(config, tmp_path), torch.float32, chunk=64)
    batch = [scored(name, 0, [5, 9, 11], range(20, 20 + length)) for name, length in (("g", 11), ("h", 9), ("i", 2))]
    (micro,) = pack(batch, credit(Ones(), batch), max_tokens=4096).micro_batches
    assert micro.input_ids_BT.shape == (3, 14) and not micro.shared
    mask = visible(micro, torch.float32, policy.causal_lm.config)
    assert (mask is None) == (window != "shorter")
    found = []
    for shared in (False, True):
        logprob_N = policy(replace(micro, shared=shared), 1.0)[0]
        (logprob_N * torch.linspace(-1, 1, len(logprob_N))).sum().backward()
        found.append([logprob_N.detach(), *(p.grad.clone() for p in policy.causal_lm.parameters())])
        policy.zero_grad()
    for without, with_mask in zip(*found, strict=True):
        torch.testing.assert_close(without, with_mask, rtol=1e-5, atol=1e-5 * with_mask.abs().max().item())


def test_a_micro_batch_says_whether_any_row_is_shared():
    apart = [scored("g", 0, [5, 9], [6, 2]), scored("h", 0, [5, 9], [6, 2])]
    for batch, shared in ((apart, [False]), ([*apart, scored("h", 1, [5, 9], [7, 2])], [True])):
        assert [micro.shared for micro in pack(batch, credit(Ones(), batch), max_tokens=64).micro_batches] == shared


@pytest.fixture
def flex(monkeypatch):
    """FlexAttention for rows of every length. On a CPU torch computes its gradients only uncompiled, and refuses if asked."""
    monkeypatch.setattr(policies, "DENSE", {"cpu": 0})
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr("transformers.integrations.flex_attention.compile_friendly_flex_attention", uncompiled)


def uncompiled(*tensors, training, **how):
    return flex_attention.flex_attention(*tensors, **how)


@pytest.mark.parametrize("config", [LlamaConfig(**GROUPED), *WINDOWED], ids=lambda config: config.model_type)
def test_with_block_masks_logprobs_and_gradients_are_those_of_each_output_alone(tmp_path, flex, config):
    batch = random_batch(groups=4)
    assert max(len(x.sample.prompt_ids + x.sample.output_ids) for x in batch) > 4 * 4
    policy = load_policy(written(config, tmp_path), torch.float32, chunk=7)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager")
    alone = torch.cat([plain_logprobs(model, x.sample, 0.7)[torch.tensor(x.sample.sampled_mask)] for x in batch])
    weight = torch.linspace(-1, 1, len(alone), dtype=torch.float64)
    (weight * alone).sum().backward()
    for micro in pack(batch, credit(Ones(), batch), max_tokens=60).micro_batches:
        found = policy(micro, 0.7)[0]
        torch.testing.assert_close(found.double(), alone[micro.slot_N], rtol=1e-5, atol=2e-5)
        (weight[micro.slot_N].float() * found).sum().backward()
    assert policy.causal_lm.config._attn_implementation == "flex_attention"
    expected = dict(model.named_parameters())
    for name, p in policy.causal_lm.named_parameters():
        assert (p.grad.double() - expected[name].grad).norm() <= 1e-5 * expected[name].grad.norm(), name


@pytest.mark.parametrize("config", [LlamaConfig(**GROUPED), *WINDOWED[:2]], ids=lambda config: config.model_type)
def test_block_masks_say_what_dense_ones_say_and_leave_out_whole_blocks(config):
    batch = [scored("g", i, [5] * 150, [6] * n) for i, n in enumerate((200, 170, 160))] + [scored("h", 0, [5] * 80, [7] * 500)]
    (micro,) = pack(batch, credit(Ones(), batch), max_tokens=4096).micro_batches
    blocks, dense = (visible(micro, torch.float32, config, blocks=blocks) for blocks in (True, False))
    pairs = [(blocks[kind], dense[kind]) for kind in dense] if isinstance(dense, dict) else [(blocks, dense)]
    for block, mask in pairs:
        t = mask.shape[-1]
        seen = flex_attention.create_mask(block.mask_mod, len(mask), None, t, t, device="cpu")
        assert torch.equal(seen, mask == 0)
        tiles = torch.nn.functional.pad(seen, (0, -t % 128, 0, -t % 128)).unflatten(3, (-1, 128)).unflatten(2, (-1, 128))
        assert torch.equal(block.to_dense() > 0, tiles.any(3).any(-1)) and block.to_dense().float().mean() < 0.6


def test_long_rows_on_a_gpu_have_block_masks_where_the_model_takes_them():
    def taken(model, length, device):
        batch = [scored("g", i, [5] * 30, [6] * length) for i in range(2)]
        (micro,) = pack(batch, credit(Ones(), batch), max_tokens=9000, together=True).micro_batches
        return takes_blocks(model, SimpleNamespace(segment_BT=micro.segment_BT, device=torch.device(device)))

    with torch.device("meta"):
        llama, gpt2 = (AutoModelForCausalLM.from_config(c) for c in (LlamaConfig(**GROUPED), GPT2Config(n_layer=1)))
    # 30 + 2 x 2033 columns are 4,096.
    assert [taken(llama, n, "cuda") for n in (2033, 2034)] == [False, True]
    assert not taken(llama, 4000, "cpu") and not taken(gpt2, 4000, "cuda")
