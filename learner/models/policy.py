"""The policy: a Hugging Face causal language model, called on packed rows, its head on trained positions only.

Each kind of layer gets a mask of its own: a position sees the prompt and its own output, in layers with a sliding window no
further back than the window, counted in positions and not in columns of the row.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from learner.config import DENSE_MASK
from learner.models.logprobs import selected_logprobs
from learner.types import MicroBatch
from reward.models.scalar_model import Mask, attention_of, hidden_states, quiet

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SUPPORTED = (
    "supported are dense text models whose layers have full attention or sliding windows, with positions from position_ids "
    "and a linear output head, scaled, capped or neither, and some mixtures of experts: docs/models.md"
)
MIXTURES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
FAMILIES = (
    "cohere", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "granite", "llama", "mistral", "olmo2",
    "olmo3", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2", *MIXTURES,
)  # fmt: skip
"""The `model_type` of every row of docs/models.md; a test trains, publishes and exports a model of each."""
ENGINES_DIFFER = {
    "apertus": "engines compute its activation otherwise, and not with the weights that they are sent",
    "cohere2": "a window of an engine is one position longer than one of transformers",
}
DENSE = {"cuda": DENSE_MASK}
"""By kind of device, columns up to which a row's mask is always written out."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class PolicyModel(nn.Module):
    """Log-probabilities and entropies of a micro-batch's trained tokens.

    Backbone and head run inside this one forward, so that sharding it gathers the head's weight too.
    """

    def __init__(self, causal_lm: PreTrainedModel, chunk: int):
        super().__init__()
        self.causal_lm = causal_lm
        self.chunk = chunk

    def forward(self, micro: MicroBatch, temperature: float, read: Callable[..., Any] = selected_logprobs) -> Any:
        """(N,) log-probabilities at the temperature and (N,) entropies, float32 or wider; or what another function of
        `learner.models.logprobs` reads of the head."""
        config = self.causal_lm.config
        head = head_of(self.causal_lm)
        backbone: Any = self.causal_lm.base_model
        mask = visible(micro, head.dtype, config, blocks=takes_blocks(backbone, micro))
        hidden_BTD = hidden_states(backbone, micro.input_ids_BT, mask, micro.position_ids_BT)
        hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, micro.source_N)
        cap, scaled = getattr(config, "final_logit_softcapping", None), temperature / logit_scale(config)
        return read(hidden_ND, head, micro.target_N, temperature=scaled, chunk=self.chunk, cap=cap)


def head_of(causal_lm: PreTrainedModel) -> Tensor:
    """(V, D) weight of the output head."""
    head: Any = causal_lm.get_output_embeddings()
    return head.weight


def logit_scale(config: PreTrainedConfig) -> float:
    """What the head's products are multiplied by: in Cohere's models `logit_scale`, in Granite's 1 / `logits_scaling`."""
    return getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)


def visible(micro: MicroBatch, dtype: torch.dtype, config: PreTrainedConfig, *, blocks: bool = False) -> Mask | None:
    """(B, 1, T, T) additive mask, 0 or -inf, or one for each kind of layer where the model has several kinds.

    A position sees the prompt and its own segment, up to itself, and in a window of W positions only the last W of these.
    Transformers passes four-dimensional masks on as they are. Padding sees itself, so that no softmax is over nothing.
    None where a row is one sequence, with padding behind it, and no window ends in it: attention that is causal needs no mask,
    and computes half. `blocks`: of 128 by 128, of which FlexAttention passes over those where nothing is seen.
    """
    kinds, window = getattr(config, "layer_types", None) or (), getattr(config, "sliding_window", None)
    if kinds and "sliding_attention" not in kinds:
        window = None
    if not micro.shared and (window is None or window >= micro.segment_BT.shape[1]):
        return None
    form = _blocks if blocks else _dense
    if window is None:
        return form(micro, dtype, None)
    sliding = form(micro, dtype, window)
    return {"full_attention": form(micro, dtype, None), "sliding_attention": sliding} if kinds else sliding


def takes_blocks(backbone: PreTrainedModel, micro: MicroBatch) -> bool:
    """Whether rows are so long that their mask is told in blocks, and the model's attention takes these."""
    width = micro.segment_BT.shape[1]
    return width > DENSE.get(micro.device.type, math.inf) and backbone._supports_flex_attn


def _dense(micro: MicroBatch, dtype: torch.dtype, window: int | None) -> Tensor:
    segment_BT, position_BT = micro.segment_BT, micro.position_ids_BT
    seen_BTT = ((segment_BT[:, :, None] == segment_BT[:, None, :]) | (segment_BT == 0)[:, None, :]).tril_()
    if window is not None:
        seen_BTT &= position_BT[:, :, None] - position_BT[:, None, :] < window
    mask_BTT = torch.zeros(seen_BTT.shape, dtype=dtype, device=seen_BTT.device).masked_fill_(~seen_BTT, -torch.inf)
    return mask_BTT[:, None]


def _blocks(micro: MicroBatch, _: torch.dtype, window: int | None) -> BlockMask:
    (rows, width), segment_BT, position_BT = micro.segment_BT.shape, micro.segment_BT, micro.position_ids_BT

    def seen(b: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
        said = (q >= k) & ((segment_BT[b, q] == segment_BT[b, k]) | (segment_BT[b, k] == 0))
        return said if window is None else said & (position_BT[b, q] - position_BT[b, k] < window)

    device = segment_BT.device
    # Compiled, so that it is not written out while it is made.
    return create_block_mask(seen, rows, None, width, width, device=device, _compile=device.type == "cuda")


def blank_policy(directory: Path, dtype: torch.dtype, chunk: int) -> PolicyModel:
    """The model of `directory` on the meta device, in eval mode. Raises ValueError as `load_causal_lm` does."""
    causal_lm = load_causal_lm(directory, dtype=dtype, device_map="meta")
    causal_lm.tie_weights()  # transformers leaves it where the files have both
    return PolicyModel(causal_lm, chunk)


def load_causal_lm(directory: Path, **how: Any) -> PreTrainedModel:
    """The model in `directory`, in eval mode. `device_map="meta"` reads names and shapes only.

    Raises ValueError for one that `check_config` refuses, and unless the files hold exactly the model's tensors: what is
    missing would be random here and something else in the engine.
    """
    config = AutoConfig.from_pretrained(directory)
    check_config(config)
    with quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, attn_implementation=attention_of(config), output_loading_info=True, ignore_mismatched_sizes=True, **how
        )
    causal_lm, found = loaded
    shapes = (f"{name} of shape {list(here)}, expected {list(there)}" for name, here, there in sorted(found["mismatched_keys"]))
    parts = {"missing": found["missing_keys"], "unexpected": found["unexpected_keys"], "otherwise shaped": set(shapes)}
    if wrong := [f"{what}: {_few(sorted(names))}" for what, names in parts.items() if names]:
        raise ValueError(f"{directory}: the files do not hold the tensors of {type(causal_lm).__name__}: {'; '.join(wrong)}")
    return causal_lm.eval()


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_config(config: PreTrainedConfig, ignored: Iterable[str] = ()) -> None:
    """Raises ValueError for a model whose config alone shows that it cannot be trained. `ignored`: keys not looked at."""
    if wrong := _unsupported(config, {key: value for key, value in config.to_dict().items() if key not in ignored}):
        raise ValueError(f"config.json: {wrong}; {SUPPORTED}")


def _unsupported(config: PreTrainedConfig, fields: dict[str, Any]) -> str:
    """Why it cannot be trained, or an empty string."""
    if config.get_text_config() is not config:
        return f"a {config.model_type} model has parts that are not text"
    for key, value in fields.items():
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float) and value > 0:
            return f"{key} is {value}, expected 0: with it the trained policy is not the sampled one"
    if layers := set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return f"layer_types has {', '.join(sorted(layers))}"
    if (experts := experts_of(fields)) and config.model_type not in MIXTURES:
        return f"{experts} is {fields[experts]}, a mixture of experts"
    if config.model_type in ENGINES_DIFFER:
        return f"model_type is {config.model_type}: {ENGINES_DIFFER[config.model_type]}"
    if fields.get("kv_lora_rank"):
        return f"kv_lora_rank is {fields['kv_lora_rank']}, latent attention"
    if fields.get("quantization_config"):
        return "the weights are quantised (quantization_config); expected float weights"
    return ""


def experts_of(fields: Mapping[str, Any]) -> str:
    """The key that says how many experts a layer has, where there are several, or an empty string."""
    return next((key for key in EXPERTS if (fields.get(key) or 0) > 1), "")
