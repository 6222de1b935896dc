"""Whether a model can be trained packed, tried on the model itself or, from its config alone, on a small one of its kind.

What packing relies on is one sentence: outputs that share a row get the log-probabilities that the model's own forward pass
gives them alone. Trying it refuses in one place what would otherwise be silently wrong: recurrent layers, ALiBi, biased
logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from learner.batch.packing import pack, plain_output
from learner.models.policy import SUPPORTED, PolicyModel, check_config, head_of
from learner.types import MicroBatch
from reward.models.scalar_model import attention_of

PACKING_TOLERANCE = 1e-3
"""In nats, or of a scalar near 1; float32 noise is below 1e-4, and the errors looked for are above 1e-2."""
WINDOW = 3
"""Of windowed layers while a model is tried, so that a few tokens are beyond it."""
SMALL = {"num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 64}
SMALL |= {"moe_intermediate_size": 64, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}


@torch.no_grad()
def check_packing(policy: PolicyModel) -> None:
    """Raises ValueError unless two outputs in one row get the log-probabilities that the model itself gives each alone.

    For an unsharded float32 model on the CPU.
    """
    vocabulary = len(head_of(policy.causal_lm))
    prompt, outputs, micro = sharing_a_row(vocabulary)
    with short_window(policy.causal_lm):
        packed_N, _ = policy(micro, 1.0)
        alone = []
        for output in outputs:
            ids = torch.tensor([prompt + output])
            logprobs = policy.causal_lm(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            alone.append(logprobs.gather(-1, ids[0, len(prompt) :, None])[:, 0])
    agree(f"{type(policy.causal_lm).__name__}: log-probabilities", (packed_N - torch.cat(alone)).abs().max().item())


def agree(what: str, gap: float) -> None:
    """Raises ValueError for a gap, NaN among them, between what the model says of outputs in one row and of each alone."""
    if not gap <= PACKING_TOLERANCE:
        found = f"{what} of outputs that share a row differ by {gap:.2g} from the model's own"
        raise ValueError(f"{found}, expected below {PACKING_TOLERANCE}; {SUPPORTED}")


def check_architecture(directory: Path) -> None:
    """`check_packing` on a random model of two layers with the directory's config; reads no weights.

    Raises ValueError for a model that cannot be trained packed.
    """
    kind = ""
    try:
        config = AutoConfig.from_pretrained(directory)
        check_config(config)
        kind = f"{config.model_type}: "
        model = AutoModelForCausalLM.from_config(_small(config), dtype=torch.float32, attn_implementation=attention_of(config))
        _randomise(model)
        check_packing(PolicyModel(model.eval(), chunk=64))
    except (ValueError, TypeError, AttributeError, RuntimeError, NotImplementedError, KeyError) as error:
        found = kind + (str(error) or repr(error))
        raise ValueError(found if found.endswith(SUPPORTED) else f"{found}; {SUPPORTED}") from error


def _small(config: PreTrainedConfig) -> PreTrainedConfig:
    """Two layers, one of each kind where there are two, and narrow where that does not change how they attend."""
    changes = {key: value for key, value in SMALL.items() if hasattr(config, key)}
    changes |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    if kinds := getattr(config, "layer_types", None):
        changes["layer_types"] = sorted(set(kinds)) if len(set(kinds)) > 1 else list(kinds[:2])
    return type(config).from_dict(config.to_dict() | changes)


@torch.no_grad()
def _randomise(model: PreTrainedModel) -> None:
    """Weights under which what is looked for shows: no bias is 0, and logits are a few nats apart."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.normal_(std=p.shape[-1] ** -0.5) if p.dim() > 1 else p.add_(torch.randn_like(p), alpha=0.2)
    head_of(model).mul_(3)


@contextmanager
def short_window(model: PreTrainedModel) -> Iterator[None]:
    """Windowed layers see `WINDOW` positions: masks are made from the config, here as in the model's own forward pass."""
    window = getattr(model.config, "sliding_window", None)
    if window is not None:
        model.config.sliding_window = min(window, WINDOW)
    try:
        yield
    finally:
        if window is not None:
            model.config.sliding_window = window


def sharing_a_row(vocabulary: int) -> tuple[tuple[int, ...], list[tuple[int, ...]], MicroBatch]:
    """A prompt, two outputs of it, and the micro-batch of one row that holds them."""
    prompt, *outputs = [tuple(7 * k * k % vocabulary for k in span) for span in (range(1, 4), range(4, 8), range(8, 10))]
    (micro,) = pack([plain_output(0, prompt, ids) for ids in outputs], max_tokens=64).micro_batches
    return prompt, outputs, micro
