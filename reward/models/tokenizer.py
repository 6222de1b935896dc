"""Tokenizers of reward models: the policy's own, copied beside the model and compared by what decides token ids."""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "*.model",
)
NOT_IDS = ("padding", "truncation")
"""Keys of tokenizer.json that do not decide which text has which id."""


def padding_id(model_dir: Path, config: Any) -> int:
    """A token that never ends an output, be it as an eos or as the template's end of a turn.

    Transformers reads the scalar at the last token that is not padding.
    The model's padding token if that will do, else the tokenizer's, else another special token, else an ordinary one.
    """
    from transformers import AutoTokenizer

    from rollout.data.prompts import declared_ends, template_end

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    eos = config.eos_token_id
    ends = {None, *(eos if isinstance(eos, list) else [eos]), *declared_ends(model_dir, tokenizer)}
    with contextlib.suppress(ValueError):  # a tokenizer without a template that can be applied
        ends.add(template_end(tokenizer))
    usual = [config.pad_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    return next(token for token in [*usual, *tokenizer.all_special_ids, *range(len(tokenizer))] if token not in ends)


def set_padding(directory: Path, pad_token_id: int) -> None:
    """Make this the padding token of the tokenizer in `directory`."""
    from transformers import AutoTokenizer

    token = AutoTokenizer.from_pretrained(directory).convert_ids_to_tokens(pad_token_id)
    for path in (directory / "tokenizer_config.json", directory / "special_tokens_map.json"):
        if path.exists():
            path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"pad_token": token}, indent=2))


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copy a model directory's tokenizer files."""
    for file in {file for pattern in TOKENIZER_FILES for file in Path(source).glob(pattern)}:
        shutil.copy2(file, directory / file.name)


def tokenizer_hash(directory: Path) -> str:
    """Digest of what decides token ids: tokenizer.json, or without one the vocabulary's files.

    Raises ValueError when there is neither.
    """
    whole = Path(directory) / "tokenizer.json"
    if whole.exists():
        content = {k: v for k, v in json.loads(whole.read_text(encoding="utf-8")).items() if k not in NOT_IDS}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    patterns = ("vocab*", "merges.txt", "*.model", "added_tokens.json")
    files = sorted({file for pattern in patterns for file in Path(directory).glob(pattern)})
    if not files:
        raise ValueError(f"{directory}: no tokenizer.json and no vocabulary file, expected a tokenizer beside the model")
    return hashlib.sha256(b"".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)).hexdigest()


def check_tokenizer(path: Path, policy_dir: Path) -> None:
    """Raises ValueError unless the reward model reads token ids as the policy does."""
    mine, theirs = tokenizer_hash(path), tokenizer_hash(policy_dir)
    if mine != theirs:
        raise ValueError(
            f"the tokenizer of the reward model {path} ({mine[:12]}) is not that of the policy {policy_dir} ({theirs[:12]}); "
            "a reward model scores the policy's token ids, so both must have the same tokenizer"
        )
