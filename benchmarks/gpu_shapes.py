"""Randomly initialised models of known shapes: nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedModel

from rollout.tasks.arithmetic import character_tokenizer

QWEN = {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": QWEN | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    },
    "qwen2.5-1.5b": QWEN | {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    },
    "qwen2.5-7b": QWEN | {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
    "tiny": QWEN | {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 512,
    },
}  # fmt: skip
"""Llamas of these sizes (Qwen 2.5 has biases besides). `tiny` is for the tests."""


def config_of(shape: str) -> LlamaConfig:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaConfig(**SHAPES[shape], **ids, max_position_embeddings=8192)


def build(shape: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype, attn_implementation="sdpa").eval()


def write(directory: Path, shape: str, device: torch.device) -> None:
    """A bfloat16 directory for transformers, whose tokenizer knows chained arithmetic and has a word for every other token."""
    model = build(shape, torch.bfloat16, device)
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(directory)
    character_tokenizer().save_pretrained(directory)
    stored = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    words = stored["model"]["vocab"]
    words |= {f"<{number}>": number for number in range(len(words), SHAPES[shape]["vocab_size"])}
    (directory / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
