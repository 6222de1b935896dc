"""What a run reads from outside, as digests in its directory: a run that goes on must read the same."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from cluster.config.run_config import RunConfig
from cluster.records.samples import write_text
from rollout.config import SourceConfig
from rollout.data.rows import load_rows

log = logging.getLogger("cohort")

TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "added_tokens.json", "special_tokens_map.json")
PROMPTING = ("chat_template*", "config.json", "generation_config.json")
"""How a prompt looks, and which tokens end an output."""
WEIGHTS = ("*.safetensors", "*.bin")
FILE = "inputs.json"


def record(config: RunConfig, *, weights: bool = False) -> None:
    """Write the digests into the run directory, once each. `weights`: the model's too, where no checkpoint holds them."""
    path = config.output / FILE
    before = json.loads(path.read_text()) if path.exists() else {}
    new = {name: _digest(what) for name, what in _inputs(config, weights) if name not in before}
    if new or not path.exists():
        write_text(path, json.dumps(before | new, indent=1))


def changed(config: RunConfig, *, weights: bool = False) -> list[str]:
    """A line for each input that is not what it was when the run began; a mended reward function or environment is only a
    warning, and a stage that was added may have a teacher of its own."""
    path = config.output / FILE
    if not path.exists():
        return []
    before, now = json.loads(path.read_text()), digests(config, weights=weights)
    out = []
    for name in sorted(before.keys() | now.keys()):
        key = name.partition(": ")[0]
        added = key.startswith("stages.") and not any(other.startswith(f"{key}: ") for other in before)
        if now.get(name) == before.get(name) or added:
            continue
        found = "is missing" if not now.get(name) else "has changed" if name in before else "is new"
        line = f"{name} {found} since the run began"
        if key in ("reward.function", "rollout.environment"):
            log.warning("%s", line)
        else:
            out.append(f"{line}; expected what it was begun with, or a new run")
    return out


def digests(config: RunConfig, *, weights: bool) -> dict[str, str]:
    """SHA-256 by `key: file`; empty for a file that is not there."""
    return {name: _digest(what) for name, what in _inputs(config, weights)}


def _inputs(config: RunConfig, weights: bool) -> Iterator[tuple[str, Path | SourceConfig]]:
    for key in type(config.data).model_fields:
        source = getattr(config.data, key)
        if isinstance(source, SourceConfig) and (source.file or source.hub):
            yield f"data.{key}: {source.file or source.hub}", source.file or source
    environment = config.rollout.environment and config.rollout.environment.function
    for key, function in (("reward.function", config.reward.function), ("rollout.environment", environment)):
        if function is not None:
            file = Path(function.rpartition(":")[0])
            yield f"{key}: {file}", file
    if config.model.path is not None:
        for file in _files(config.model.path, TOKENIZER + PROMPTING + (WEIGHTS if weights else ())):
            yield f"model.path: {file}", file
    given = [("reward.model.path", path) for path in (config.reward.model.path if config.reward.model else ())]
    given += [(key, path) for path, key in config.teachers.items()]
    for key, directory in given:
        for file in _files(directory, TOKENIZER + PROMPTING + WEIGHTS):
            yield f"{key}: {file}", file


def _files(directory: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in directory.glob(pattern) if file.is_file()})


def _digest(what: Path | SourceConfig) -> str:
    if isinstance(what, SourceConfig):
        rows = "\n".join(json.dumps(row.columns, default=str) for row in load_rows(what))
        return hashlib.sha256(rows.encode()).hexdigest()
    if not what.is_file():
        return ""
    with what.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
