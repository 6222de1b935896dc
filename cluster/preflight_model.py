"""The part of `cohort check` that reads model directories: the policy's, and reward models from elsewhere."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config import RunConfig
from cluster.contradictions import supervision
from reward.config import member_directories
from reward.selftest import Report
from reward.tokenizer import check_tokenizer
from rollout.config import PromptConfig
from rollout.prompts import stop_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What the check reads of a model directory."""

    tokenizer: "PreTrainedTokenizerBase"
    parameters: int
    positions: int
    """Longest sequence, in tokens."""
    vocabulary: int
    stops: tuple[int, ...]
    """Tokens that end an output."""


def read_model(config: RunConfig) -> Model:
    """Raises ValueError when the directory is not a model's."""
    if config.model.path is not None:
        return _read(config.model.path, config.data.prompt)
    from rollout.tasks import make_small_llama

    with tempfile.TemporaryDirectory(prefix="cohort-check-") as folder:
        make_small_llama(Path(folder), config.seed, config.model.init)
        return _read(Path(folder), config.data.prompt)


def _read(path: Path, prompt: PromptConfig) -> Model:
    if not (path / "config.json").is_file():
        hint = "; `cohort import-gguf` makes one from a GGUF file" if not path.exists() else ""
        raise ValueError(f"model.path: {path}: found no config.json; expected a Hugging Face model directory{hint}")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"model.path: {path}: found no .safetensors file; expected the model's weights")
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoTokenizer

    try:
        shape = AutoConfig.from_pretrained(path).get_text_config()
        tokenizer = AutoTokenizer.from_pretrained(path)
        parameters = 0
        for file in weights:
            with safe_open(file, framework="np") as tensors:
                parameters += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"model.path: {path}: cannot be read: {error}") from error
    return Model(
        tokenizer=tokenizer, parameters=parameters, positions=shape.max_position_embeddings, vocabulary=shape.vocab_size,
        stops=stop_token_ids(path, tokenizer, prompt),
    )  # fmt: skip


def check_model(config: RunConfig, model: Model, report: Report) -> None:
    name = config.model.path or config.model.init
    report.facts.append(f"model: {name}, {model.parameters / 1e6:.1f} M parameters, sequences up to {model.positions} tokens")
    prompt, new = config.data.max_prompt_tokens, config.rollout.max_new_tokens
    if prompt + new > model.positions:
        limits = f"data.max_prompt_tokens {prompt} + rollout.max_new_tokens {new} = {prompt + new}"
        report.problems.append(f"{limits}; expected at most the model's {model.positions}")
    if len(model.tokenizer) > model.vocabulary:
        found = f"the tokenizer has {len(model.tokenizer)} tokens and the model {model.vocabulary}"
        report.problems.append(f"model.path: {name}: {found}; expected no more tokens than the model knows")
    if (most := max(model.stops)) >= model.vocabulary:
        found = f"token {most} is declared to end an output, and the model knows {model.vocabulary}"
        report.problems.append(f"model.path: {name}: {found}; expected eos ids of this model")
    else:
        ends = (f"{model.tokenizer.convert_ids_to_tokens(token)!r} ({token})" for token in model.stops)
        report.facts.append(f"an output ends with any of: {', '.join(ends)}")


def check_reward_model(config: RunConfig, report: Report) -> None:
    """A reward model from elsewhere reads the policy's token ids, so its tokenizer must be the policy's."""
    kind, paths = supervision(config), config.reward.model.path if config.reward.model else ()
    if kind is None:
        return
    if paths:
        from reward.model import kind_of
    for path in paths:
        for member in member_directories(path):
            if (found := kind_of(member)) != kind:
                report.problems.append(f"reward.model.path: {member} is a model for {found} supervision; expected {kind}")
            if config.model.path is not None:
                check_tokenizer(member, config.model.path)
    report.facts.append(f"reward model: {kind} supervision, {', '.join(map(str, paths)) or 'trained by the run'}")
