"""The part of `cohort check` that reads model directories: the policy's, and reward models from elsewhere."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config.contradictions import supervision
from cluster.config.run_config import RunConfig
from cluster.fleet.demand import Size, size_of
from reward.config import member_directories
from reward.judging.selftest import Report
from reward.models.tokenizer import check_tokenizer
from rollout.data.prompts import stop_token_ids, turns_differ
from rollout.engine.settings import CPU_HEAD_SIZES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What the check reads of a model directory."""

    tokenizer: "PreTrainedTokenizerBase"
    shape: "PreTrainedConfig"
    size: Size
    stops: tuple[int, ...]
    """Tokens that end an output."""

    @property
    def positions(self) -> int:
        """Longest sequence, in tokens."""
        return self.shape.max_position_embeddings


def read_model(config: RunConfig) -> Model:
    """Raises ValueError when the directory is not a model's."""
    if config.model.path is not None:
        return _read(config.model.path, config)
    from rollout.tasks.arithmetic import make_small_llama

    with tempfile.TemporaryDirectory(prefix="cohort-check-") as folder:
        make_small_llama(Path(folder), config.seed, str(config.model.init))
        return _read(Path(folder), config)


def _read(path: Path, config: RunConfig) -> Model:
    if not (path / "config.json").is_file():
        raise ValueError(f"model.path: {path}: found no config.json; expected a Hugging Face model directory{_origin(path)}")
    if not any(path.glob("*.safetensors")):
        raise ValueError(f"model.path: {path}: found no .safetensors file; expected the model's weights")
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoTokenizer

    from learner.models.supported import check_architecture

    try:
        check_architecture(path)
        size, shape = size_of(path, config.learner.lora), AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, SafetensorError) as error:
        where = "" if str(error).startswith("learner.lora") else f"model.path: {path}: "
        raise ValueError(where + str(error).removeprefix(f"{path}: ")) from error
    stops = stop_token_ids(path, tokenizer, config.data.prompt)
    return Model(tokenizer=tokenizer, shape=shape, size=size, stops=stops)


def _origin(path: Path) -> str:
    """Where a model directory that is not there comes from: as the recipes name them, RUN/policy is a run's export."""
    run = path.parent
    if path.exists():
        return ""
    if (run / "config.yaml").is_file():
        return f"; `cohort export {run} {path}` makes it from the run's checkpoint"
    if path.name == "policy":
        return f"; `cohort train {run.name}.yaml && cohort export {run} {path}` makes it (deploy/recipes)"
    return "; `cohort import-gguf` makes one from a GGUF file"


def gpus_here() -> int | None:
    """How many GPUs there are for the run: known of this machine, not of a cluster elsewhere."""
    if os.environ.get("RAY_ADDRESS"):
        return None
    import torch

    return torch.cuda.device_count()


def gpu_memory_here() -> float:
    """Bytes of this machine's first GPU."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def check_model(config: RunConfig, model: Model, report: Report) -> None:
    name, shape = config.model.path or config.model.init, model.shape
    positions, vocabulary = model.positions, shape.vocab_size
    report.facts.append(f"model: {name}, {model.size.parameters / 1e6:.1f} M parameters, sequences up to {positions} tokens")
    if lora := config.learner.lora:
        share = f"{model.size.adapter / 1e6:.2f} M parameters, {model.size.adapter / model.size.parameters:.2%} of the model's"
        report.facts.append(f"learner.lora: an adapter of rank {lora.rank} with {share}; the rest is frozen")
    prompt, new = config.data.max_prompt_tokens, config.rollout.max_new_tokens
    limits = f"data.max_prompt_tokens {prompt} + rollout.max_new_tokens {new} = {prompt + new}"
    if prompt + new > positions:
        report.problems.append(f"{limits}; expected at most the model's {positions}")
    elif prompt + new > (short := _short_positions(shape)):
        why = f"beyond {short} tokens all positions of a batch turn otherwise (rope_type longrope)"
        report.problems.append(f"{limits}; expected at most {short}: {why}")
    if len(model.tokenizer) > vocabulary:
        found = f"the tokenizer has {len(model.tokenizer)} tokens and the model {vocabulary}"
        report.problems.append(f"model.path: {name}: {found}; expected no more tokens than the model knows")
    report.problems += _check_heads(config, shape)
    if (most := max(model.stops)) >= vocabulary:
        found = f"token {most} is declared to end an output, and the model knows {vocabulary}"
        report.problems.append(f"model.path: {name}: {found}; expected eos ids of this model")
    else:
        ends = (f"{model.tokenizer.convert_ids_to_tokens(token)!r} ({token})" for token in model.stops)
        report.facts.append(f"an output ends with any of: {', '.join(ends)}")
    if config.data.prompt.template == "chat" and (how := turns_differ(model.tokenizer)):
        report.warnings.append(f"data.prompt.template: {how}; demonstrations are trained as outputs are sampled")


def _short_positions(shape: "PreTrainedConfig") -> int:
    """Up to where positions turn alike in every batch."""
    rope = getattr(shape, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return shape.max_position_embeddings
    return rope.get("original_max_position_embeddings") or shape.original_max_position_embeddings


def _check_heads(config: RunConfig, shape: "PreTrainedConfig") -> list[str]:
    """Attention heads must divide among an engine's ranks, and on the CPU have a size that vLLM has kernels for."""
    out, ranks, heads = [], config.rollout.tensor_parallel_size, shape.num_attention_heads
    groups = getattr(shape, "num_key_value_heads", None) or heads
    for count, what in ((heads, "attention heads"), (groups, "key-value heads")):
        if count % ranks and not (what.startswith("key") and ranks % count == 0):
            out.append(f"rollout.tensor_parallel_size: {ranks} does not divide the model's {count} {what}")
    size = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    if gpus_here() == 0 and size not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        out.append(f"model.path: attention heads of size {size}; vLLM on the CPU has kernels for {sizes}")
    return out


def check_reward_model(config: RunConfig, report: Report) -> None:
    """A reward model from elsewhere reads the policy's token ids, so its tokenizer must be the policy's."""
    kind, paths = supervision(config), config.reward.model.path if config.reward.model else ()
    if kind is None:
        return
    if paths:
        from reward.models.scalar_model import kind_of
    for path in paths:
        for member in member_directories(path):
            if (found := kind_of(member)) != kind:
                report.problems.append(f"reward.model.path: {member} is a model for {found} supervision; expected {kind}")
            if config.model.path is not None:
                check_tokenizer(member, config.model.path)
    report.facts.append(f"reward model: {kind} supervision, {', '.join(map(str, paths)) or 'trained by the run'}")
