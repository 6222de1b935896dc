"""The policy: a Hugging Face causal language model, called on packed rows, its head on trained positions only.

What packing relies on is checked when a model is loaded, on the model itself: outputs that share a row must get the
log-probabilities that the model's own forward pass gives them alone. That refuses in one place what would otherwise be
silently wrong: recurrent layers, ALiBi, scaled, capped or biased logits. What a short check cannot see (windows, dropout) is
read off the config.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from learner.credit import Ones
from learner.logprobs import selected_logprobs
from learner.packing import pack
from learner.types import MicroBatch
from reward.types import ScoredSample, as_given
from rollout.types import FinishReason, Sample

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PACKING_TOLERANCE = 1e-3
"""In nats; float32 noise is below 1e-4, and the errors looked for are above 1e-2."""


class PolicyModel(nn.Module):
    """Log-probabilities and entropies of a micro-batch's trained tokens.

    Backbone and head run inside this one forward, so that sharding it gathers the head's weight too.
    """

    def __init__(self, causal_lm: PreTrainedModel, chunk: int):
        super().__init__()
        self.causal_lm = causal_lm
        self.chunk = chunk

    def forward(self, micro: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """(N,) log-probabilities at the temperature and (N,) entropies, float32 or wider."""
        head = self.causal_lm.get_output_embeddings().weight
        hidden_BTD = self.causal_lm.base_model(
            input_ids=micro.input_ids_BT,
            attention_mask=visible(micro.segment_BT, head.dtype),
            position_ids=micro.position_ids_BT,
            use_cache=False,
        ).last_hidden_state
        hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, micro.source_N)
        return selected_logprobs(hidden_ND, head, micro.target_N, temperature=temperature, chunk=self.chunk)


def visible(segment_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, T) additive mask, 0 or -inf: a position sees the prompt and its own segment, up to itself.

    Transformers passes a four-dimensional mask on as it is. Padding sees itself, so that no softmax is over nothing.
    """
    width = segment_BT.shape[1]
    same = segment_BT[:, :, None] == segment_BT[:, None, :]
    seen = (same | (segment_BT == 0)[:, None, :]).tril_()
    return torch.zeros(len(segment_BT), 1, width, width, dtype=dtype, device=segment_BT.device).masked_fill_(
        ~seen[:, None], -torch.inf
    )


def load_policy(directory: Path, dtype: torch.dtype, chunk: int) -> PolicyModel:
    """The model in `directory`, in eval mode, on the CPU. Raises ValueError for one that `check_config` refuses."""
    causal_lm = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa").eval()
    check_config(causal_lm.config.to_dict())
    return PolicyModel(causal_lm, chunk)


def check_config(config: dict[str, Any]) -> None:
    """Raises ValueError for dropout, and for attention other than full."""
    for key, value in config.items():
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float) and value > 0:
            raise ValueError(
                f"config.json: {key} is {value}, expected 0: with dropout the trained policy is not the sampled one"
            )
    layers = config.get("layer_types")
    if layers and set(layers) != {"full_attention"}:
        raise ValueError(f"config.json: layer_types has {sorted(set(layers))}, expected full_attention only")
    if not layers and config.get("sliding_window") is not None:
        raise ValueError(f"config.json: sliding_window is {config['sliding_window']}, expected null: attention must be full")


@torch.no_grad()
def check_packing(policy: PolicyModel) -> None:
    """Raises ValueError unless two outputs in one row get the log-probabilities that the model itself gives each alone.

    For an unsharded float32 model on the CPU.
    """
    vocabulary = policy.causal_lm.get_output_embeddings().weight.shape[0]
    prompt, outputs, micro = sharing_a_row(vocabulary)
    packed_N, _ = policy(micro, 1.0)
    alone = []
    for output in outputs:
        ids = torch.tensor([prompt + output])
        logprobs = policy.causal_lm(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        alone.append(logprobs.gather(-1, ids[0, len(prompt) :, None])[:, 0])
    gap = (packed_N - torch.cat(alone)).abs().max().item()
    if not gap <= PACKING_TOLERANCE:
        name = type(policy.causal_lm).__name__
        raise ValueError(
            f"{name}: log-probabilities of outputs that share a row differ by {gap:.2g} from the model's own, expected below "
            f"{PACKING_TOLERANCE}; packing needs full attention, positions from position_ids and a plain linear output head"
        )


def sharing_a_row(vocabulary: int) -> tuple[tuple[int, ...], list[tuple[int, ...]], MicroBatch]:
    """A prompt, two outputs of it, and the micro-batch of one row that holds them."""
    prompt, *outputs = [tuple(7 * k * k % vocabulary for k in span) for span in (range(1, 4), range(4, 8), range(8, 10))]
    batch = [sequence(prompt, output, group="check", index=i) for i, output in enumerate(outputs)]
    (micro,) = pack(batch, Ones()(batch), max_tokens=64).micro_batches
    return prompt, outputs, micro


def sequence(prompt: tuple[int, ...], output: tuple[int, ...], *, group: str, index: int) -> ScoredSample:
    """Given tokens in the form that packing takes, to be scored and not trained on."""
    sample = Sample(
        ordinal=0,
        group_id=group,
        index=index,
        attempt=0,
        prompt_ids=prompt,
        output_ids=output,
        sampled_mask=(True,) * len(output),
        logprobs=(),
        text="",
        versions=(),
        finish_reason=FinishReason.LENGTH,
    )
    return as_given(sample)
