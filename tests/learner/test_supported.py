"""Models with windows and caps against their own forward pass, and models that are refused before and at loading."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from learner.algorithms.credit import Ones
from learner.models.policy import load_causal_lm, visible
from learner.models.scalars import check_scalar_packing
from learner.models.supported import check_architecture, check_packing
from reward.models.scalar_model import build
from tests.learner.builders import credit, load_policy, pack, plain_logprobs, random_batch, scored, write_model
from tests.learner.test_policy import packed_logprobs

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
NO_IDS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
GROUPED = {**SMALL, **NO_IDS, "num_key_value_heads": 2, "initializer_range": 0.3}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
CAPPED = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 8}
WINDOWED = [
    MistralConfig(**GROUPED, sliding_window=4),
    Gemma2Config(**GROUPED, **ALTERNATING, **CAPPED, head_dim=8),
    Gemma3TextConfig(**GROUPED, **ALTERNATING, head_dim=8),
    Olmo3Config(**GROUPED, **ALTERNATING),
    Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1),
]


SCALED = [CohereConfig(**GROUPED, logit_scale=0.5), GraniteConfig(**GROUPED, logits_scaling=4.0, residual_multiplier=0.5)]
MIXTURE = Qwen3MoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8)


def written(config, directory):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=WINDOWED, ids=lambda config: config.model_type)
def windowed_dir(request, tmp_path_factory):
    return written(request.param, tmp_path_factory.mktemp(request.param.model_type))


@pytest.mark.slow
def test_windows_and_caps_are_the_models_own_with_sequences_beyond_the_window(windowed_dir):
    batch = random_batch(groups=4)
    assert max(len(x.sample.prompt_ids + x.sample.output_ids) for x in batch) > 4 * 4
    policy = load_policy(windowed_dir, torch.float64, chunk=7)
    attention = policy.causal_lm.config._attn_implementation
    assert attention == ("eager" if policy.causal_lm.config.model_type == "gemma2" else "sdpa")
    assert_the_models_own(policy, windowed_dir, batch)


@pytest.mark.slow
@pytest.mark.parametrize("config", [*SCALED, MIXTURE], ids=lambda config: config.model_type)
def test_scaled_logits_and_experts_are_the_models_own(config, tmp_path):
    # Grouped products of experts know no float64.
    assert_the_models_own(
        load_policy(written(config, tmp_path), torch.float32, chunk=7), tmp_path, random_batch(groups=4), 1e-4
    )


def assert_the_models_own(policy, directory, batch, tolerance=2e-5):
    """Log-probabilities and gradients of packed rows, and of the model's forward pass on each output alone in float64."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    alone = torch.cat([plain_logprobs(model, x.sample, 0.7)[torch.tensor(x.sample.sampled_mask)] for x in batch])
    for budget in (1, 40, 4096):
        # Softmax is float32 in eager attention.
        found = packed_logprobs(policy, batch, 0.7, budget).double()
        torch.testing.assert_close(found, alone.detach(), rtol=0, atol=tolerance)
    weight = torch.linspace(-1, 1, len(alone), dtype=torch.float64)
    (weight * alone).sum().backward()
    for micro in pack(batch, credit(Ones(), batch), max_tokens=40).micro_batches:
        (weight[micro.slot_N] * policy(micro, 0.7)[0]).sum().backward()
    expected = dict(model.named_parameters())
    for name, p in policy.causal_lm.named_parameters():
        torch.testing.assert_close(p.grad.double(), expected[name].grad, rtol=1e-4, atol=2e-4)


def test_a_position_sees_the_prompt_and_its_own_output_up_to_itself():
    tensors = {"segment_BT": torch.tensor([[0, 0, 1, 1, 2, -1]]), "position_ids_BT": torch.tensor([[0, 1, 2, 3, 2, 0]])}
    rows = SimpleNamespace(**tensors, shared=True)
    seen = visible(rows, torch.float32, LlamaConfig())[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    windowed = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    assert (visible(rows, torch.float32, MistralConfig(sliding_window=2))[0, 0] == 0).int().tolist() == windowed
    kinds = ["full_attention", "sliding_attention"]
    masks = visible(rows, torch.float32, Olmo3Config(num_hidden_layers=2, layer_types=kinds, sliding_window=2))
    assert (masks["sliding_attention"][0, 0] == 0).int().tolist() == windowed
    assert torch.equal(masks["full_attention"][0, 0] == 0, seen)


def test_a_window_ends_where_it_says(tmp_path):
    config = MistralConfig(**(GROUPED | {"num_hidden_layers": 1}), sliding_window=4)
    policy = load_policy(written(config, tmp_path), torch.float64, chunk=64)
    first, second = ([scored("g", 0, [a, b, 11, 12], [6, 7, 8])] for a, b in ((5, 9), (50, 60)))
    found = packed_logprobs(policy, first) == packed_logprobs(policy, second)
    # Token 6 is predicted at position 3, which sees 0 to 3; 7 at position 4 sees 1 to 4; 8 at position 5 sees 2 to 5.
    assert found.tolist() == [False, False, True]


def test_a_window_that_is_not_kept_is_seen_by_the_check(windowed_dir, monkeypatch):
    policy = load_policy(windowed_dir, torch.float32, chunk=64)
    window = policy.causal_lm.config.sliding_window
    check_packing(policy)
    assert policy.causal_lm.config.sliding_window == window
    monkeypatch.setattr("learner.models.policy.visible", lambda micro, dtype, config, **how: everything(micro, config))
    with pytest.raises(ValueError, match="share a row differ by"):
        check_packing(policy)


def everything(micro, config):
    """Causal within prompt and output, with no window."""
    same = micro.segment_BT[:, :, None] == micro.segment_BT[:, None, :]
    seen = (same | (micro.segment_BT == 0)[:, None, :]).tril()
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]
    return {"full_attention": mask, "sliding_attention": mask} if hasattr(config, "layer_types") else mask


@pytest.mark.parametrize("kind", ["outcome", "process"])
@pytest.mark.parametrize("config", WINDOWED[:2], ids=lambda config: config.model_type)
def test_reward_models_and_critics_keep_windows(tmp_path, config, kind):
    shutil.copytree(write_model(tmp_path / "tokenizer"), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    written(config, tmp_path / "model")
    check_scalar_packing(build(tmp_path / "model", kind, members=2, seed=1, dtype=torch.float32))


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**GROUPED, attention_bias=True),
        LlamaConfig(**GROUPED, dtype="bfloat16"),
        Qwen2Config(**GROUPED),
        GPT2Config(n_embd=32, n_layer=4, n_head=2, summary_first_dropout=0.0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        Qwen3MoeConfig(num_experts=128, num_experts_per_tok=8, hidden_size=2048, moe_intermediate_size=768),
        *SCALED,
        *WINDOWED,
    ],
    ids=lambda config: config.model_type,
)
def test_supported_models_are_known_by_their_config(tmp_path, config):
    config.save_pretrained(tmp_path)
    check_architecture(tmp_path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LlamaConfig(**SMALL, attention_dropout=0.1), "attention_dropout is 0.1, expected 0"),
        (LlamaConfig(**SMALL, quantization_config={"quant_method": "fp8"}), "quantised"),
        (BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=64), "Bloom.* does not support"),
        (PhiConfig(**GROUPED), "share a row differ by .*linear output head"),
        (Cohere2Config(**GROUPED), "a window of an engine is one position longer"),
        (GptOssConfig(**GROUPED, num_local_experts=4), "_experts is 4, a mixture of experts"),
        (DeepseekV3Config(n_routed_experts=1, num_hidden_layers=2), "kv_lora_rank is 512, latent attention"),
        (Qwen3NextConfig(num_experts=0), "layer_types has linear_attention"),
        (MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64), "layer_types has linear_attention"),
        (Gemma3Config(), "a gemma3 model has parts that are not text"),
    ],
    ids=["dropout", "fp8", "alibi", "biased head", "other windows", "moe", "mla", "linear attention", "mamba", "images"],
)
def test_models_that_cannot_be_trained_are_refused_without_their_weights(tmp_path, config, reason):
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{reason}.*docs/models.md$"):
        check_architecture(tmp_path)


@pytest.mark.parametrize("config", SCALED, ids=lambda config: config.model_type)
def test_a_scale_that_is_not_kept_is_refused_on_the_model_itself(config, tmp_path, monkeypatch):
    policy = load_policy(written(config, tmp_path), torch.float32, chunk=64)
    check_packing(policy)
    monkeypatch.setattr("learner.models.policy.logit_scale", lambda config: 1.0)
    with pytest.raises(ValueError, match="share a row differ by .*linear output head"):
        check_packing(policy)


def test_tensors_that_are_missing_or_too_many_or_of_another_shape_are_named(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for how in ({"device_map": "meta"}, {"dtype": torch.float32}):
        with pytest.raises(ValueError) as error:
            load_causal_lm(tmp_path, **how)
        assert "LlamaForCausalLM: missing: model.layers.1.mlp.up_proj.weight; unexpected: " in str(error.value)
        assert "unexpected: model.layers.0.self_attn.q_proj.bias; otherwise shaped: model.norm.weight of shape [7]" in str(
            error.value
        )


def test_a_tied_head_may_be_absent(tied_dir):
    assert "lm_head.weight" not in load_file(tied_dir / "model.safetensors")
    assert json.loads((tied_dir / "config.json").read_text())["tie_word_embeddings"]
    assert load_causal_lm(tied_dir, device_map="meta").get_output_embeddings().weight.is_meta
