"""The part of `cohort check` that reads model directories: the policy's, and reward models from elsewhere."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config.contradictions import supervision
from cluster.config.run_config import RunConfig
from cluster.fleet.demand import Size, size_of
from learner.algorithms.table import Algorithm
from reward.config import member_directories
from reward.judging.selftest import Report
from reward.models.tokenizer import check_tokenizer
from rollout.data.prompts import declared_ends, stop_token_ids, turns_differ
from rollout.engine.settings import CPU_HEAD_SIZES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

DRAFT = "rollout.speculative.model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What the check reads of a model directory."""

    tokenizer: "PreTrainedTokenizerBase"
    shape: "PreTrainedConfig"
    size: Size
    stops: tuple[int, ...]
    """Tokens that end an output."""
    teachers: "Mapping[str, Model]" = field(default_factory=dict)
    """By the key that names it."""
    draft: "Model | None" = None
    """Of rollout.speculative."""

    @property
    def positions(self) -> int:
        """Longest sequence, in tokens."""
        return self.shape.max_position_embeddings


def read_model(config: RunConfig) -> Model:
    """The policy's, with the teachers' and the one that guesses. Raises ValueError when a directory is not a model's."""
    model = _read_policy(config)
    teachers = {key: _read(path, config, key) for path, key in config.teachers.items()}
    largest = max((teacher.size.parameters for teacher in teachers.values()), default=0)
    draft = _read(config.draft, config, DRAFT) if config.draft else None
    size = replace(model.size, teacher=largest, draft=draft.size.parameters if draft else 0)
    return replace(model, teachers=teachers, draft=draft, size=size)


def _read_policy(config: RunConfig) -> Model:
    if config.model.path is not None:
        return _read(config.model.path, config)
    from rollout.tasks.arithmetic import make_small_llama

    with tempfile.TemporaryDirectory(prefix="cohort-check-") as folder:
        make_small_llama(Path(folder), config.seed, str(config.model.init))
        return _read(Path(folder), config)


def _read(path: Path, config: RunConfig, key: str = "model.path") -> Model:
    if not (path / "config.json").is_file():
        raise ValueError(f"{key}: {path}: found no config.json; expected a Hugging Face model directory{_origin(path)}")
    if not any(path.glob("*.safetensors")):
        raise ValueError(f"{key}: {path}: found no .safetensors file; expected the model's weights")
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoTokenizer

    from learner.models.supported import check_architecture

    try:
        check_architecture(path)
        lora = config.learner.lora if key == "model.path" else None
        size, shape = size_of(path, lora), AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, SafetensorError) as error:
        where = "" if str(error).startswith("learner.lora") else f"{key}: {path}: "
        raise ValueError(where + str(error).removeprefix(f"{path}: ")) from error
    declared = declared_ends(path, tokenizer)
    stops = stop_token_ids(path, tokenizer, config.data.prompt) if key == "model.path" else tuple(sorted(declared))
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
    from learner.models.policy import FAMILIES

    name, shape = config.model.path or config.model.init, model.shape
    positions, vocabulary = model.positions, shape.vocab_size
    report.facts.append(f"model: {name}, {model.size.parameters / 1e6:.1f} M parameters, sequences up to {positions} tokens")
    if shape.model_type not in FAMILIES:
        report.warnings.append(
            f"model.path: {name}: no test has trained a {shape.model_type} model; docs/models.md lists those"
        )
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
    _check_teachers(config, model, report)
    _check_draft(model, report)
    _check_told_apart(config, model, report)


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


def _check_teachers(config: RunConfig, model: Model, report: Report) -> None:
    """A teacher reads the policy's token ids, and says of each output how likely all of it is, its end too."""
    needed = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    for key, teacher in model.teachers.items():
        rows, wrong = teacher.shape.vocab_size, _other_ids(model, teacher)
        if unknown := sorted(set(model.stops) - set(teacher.stops)):
            found = f"{key}: tokens {unknown} end an output of the policy, and {list(teacher.stops)} one of the teacher's"
            (report.problems if len(unknown) == len(model.stops) else report.warnings).append(
                f"{found}; expected these too: by a teacher that does not know an end outputs unlearn to end"
            )
        if rows < model.shape.vocab_size:
            wrong.append(f"its head has {rows} rows and the policy's {model.shape.vocab_size}; expected at least as many")
        if teacher.positions < needed:
            wrong.append(f"its sequences have up to {teacher.positions} tokens; expected {needed}, a prompt with its output")
        report.problems += [f"{key}: {why}" for why in wrong]
        size = f"{teacher.size.parameters / 1e6:.1f} M parameters"
        report.facts.append(f"{key}: {size}, sequences up to {teacher.positions} tokens")


def _check_draft(model: Model, report: Report) -> None:
    """What guesses the policy's tokens has the same ones."""
    if (draft := model.draft) is None:
        return
    wrong = _other_ids(model, draft)
    if (rows := draft.shape.vocab_size) != model.shape.vocab_size:
        wrong.append(f"its head has {rows} rows and the policy's {model.shape.vocab_size}; expected as many, as vLLM does")
    report.problems += [f"{DRAFT}: {why}" for why in wrong]
    report.facts.append(f"{DRAFT}: {draft.size.parameters / 1e6:.1f} M parameters, which stay as they are")


def _other_ids(model: Model, other: Model) -> list[str]:
    """What is wrong with another model's tokenizer, where it is not the policy's."""
    mine, theirs = model.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    odd = sorted(token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token))
    if not odd:
        return []
    first = f"{odd[0]!r} is {theirs.get(odd[0], 'none')} there and {mine.get(odd[0], 'none')} in the policy's"
    return [f"its tokenizer has other ids for {len(odd)} tokens: {first}; expected the policy's tokenizer"]


def _check_told_apart(config: RunConfig, model: Model, report: Report) -> None:
    """A position has no more tokens than the vocabulary, and one besides those that are told apart."""
    rows = [(i, stage.resolved()) for i, stage in enumerate(config.stages)]
    for i, count in ((i, row.weighting.tokens) for i, row in rows if isinstance(row, Algorithm)):
        if count >= model.shape.vocab_size:
            found = f"found {count}; expected less than the model's {model.shape.vocab_size} tokens"
            report.problems.append(f"stages.{i}.weighting.k: {found}")


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
