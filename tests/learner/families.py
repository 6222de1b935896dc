"""Every family of docs/models.md as a tiny random model, by its `model_type`."""

from pathlib import Path

import torch
import transformers as hf
from transformers import AutoModelForCausalLM, PreTrainedConfig

from tests.conftest import VOCABULARY, save_tiny_model

SHAPE = {
    "vocab_size": len(VOCABULARY), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "initializer_range": 0.2,
    "tie_word_embeddings": False, "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEAD, TIED = {"head_dim": 32}, {"tie_word_embeddings": True}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
CAPPED = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 32}
SCALED_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
MULTIPLIED = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 2.0}
NO_DROPOUT = dict.fromkeys(("residual_dropout", "embedding_dropout"), 0.0)
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512, "summary_first_dropout": 0.0}
GPT2 |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
PARTICULAR = {
    "llama": (hf.LlamaConfig, {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **SCALED_ROPE}}),
    "qwen2": (hf.Qwen2Config, TIED),
    "qwen3": (hf.Qwen3Config, HEAD),
    "mistral": (hf.MistralConfig, {"sliding_window": 16}),
    "gemma": (hf.GemmaConfig, HEAD | TIED),
    "gemma2": (hf.Gemma2Config, ALTERNATING | CAPPED | HEAD | TIED),
    "gemma3_text": (hf.Gemma3TextConfig, ALTERNATING | HEAD | TIED),
    "olmo2": (hf.Olmo2Config, {}),
    "olmo3": (hf.Olmo3Config, ALTERNATING),
    "phi3": (hf.Phi3Config, {}),
    "smollm3": (hf.SmolLM3Config, {}),
    "starcoder2": (hf.Starcoder2Config, NO_DROPOUT | {"sliding_window": 16}),
    "falcon": (hf.FalconConfig, {"new_decoder_architecture": True, "num_kv_heads": 1, "alibi": False, "bias": False}),
    "glm": (hf.GlmConfig, HEAD),
    "glm4": (hf.Glm4Config, HEAD),
    "gpt2": (hf.GPT2Config, GPT2 | TIED),
    "granite": (hf.GraniteConfig, MULTIPLIED),
    "cohere": (hf.CohereConfig, {"logit_scale": 0.5, **TIED}),
    "qwen3_moe": (hf.Qwen3MoeConfig, EXPERTS | HEAD),
    "qwen2_moe": (hf.Qwen2MoeConfig, EXPERTS | {"shared_expert_intermediate_size": 64}),
    "mixtral": (hf.MixtralConfig, {"num_local_experts": 4, **HEAD}),
    "olmoe": (hf.OlmoeConfig, {"num_experts": 4, "num_experts_per_tok": 2}),
}


def config_of(family: str) -> PreTrainedConfig:
    cls, particular = PARTICULAR[family]
    return cls(**{**SHAPE, **particular})


def write_family(family: str, directory: Path) -> Path:
    """A model of which no bias is 0 and no norm 1, float32, with a tokenizer."""
    save_tiny_model(directory)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.2 if p.dim() < 2 else 0.0)
    model.save_pretrained(directory)
    return directory
