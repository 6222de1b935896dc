"""A run's samples as its page holds them: a small index of all, and a compressed part a step that is read when it is shown."""

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.records.metrics import read_jsonl

LEAST, LEVELS, PER_DECADE, FIRST = 1e-7, 95, 11, 48
"""Of a number a token: what is taken as 0; levels of magnitude (0, then 1e-7 to 32 in steps of 10^(1/11), so within 11 %); and
the character of level 0. Negative ones come after the positive. The files have them exactly."""
UNKNOWN = " "
Pieces = Callable[[Sequence[int]], Sequence[str]]
"""Token ids -> what each of them adds to the text."""


@dataclass(frozen=True, slots=True)
class Part:
    """One step's samples."""

    index: dict
    """What lists and filters need, a column a field: see `read_part`."""
    data: bytes
    """The rest, as gzipped JSON."""


def sample_files(run_dir: Path) -> dict[int, Path]:
    """By step, in order."""
    found = {
        int(m[1]): path for path in run_dir.glob("samples/step_*.jsonl") if (m := re.search(r"step_(\d+)\.jsonl$", path.name))
    }
    return dict(sorted(found.items()))


def chosen(counts: Mapping[int, int], limit: int) -> list[int]:
    """Steps, at even distances and the last among them, that hold at most `limit` samples; at least one step."""
    steps = list(counts)
    every = 1
    while every < len(steps) and sum(counts[step] for step in steps[::-every]) > limit:
        every += 1
    return steps[::-every][::-1]


def count_lines(path: Path) -> int:
    """How many."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def read_part(path: Path, step: int, pieces: Pieces | None) -> Part:
    """A step's file. Index: `groups` their ids, and of each sample `g` its place among these, `r` reward, `a` advantage, `v`
    verdict, `f` whether trained, `n` tokens, `t` whether it ran out of them, `m` largest |mismatch|."""
    rows = read_jsonl(path)
    groups = {name: place for place, name in enumerate(dict.fromkeys(row["group"] for row in rows))}
    asked = {row["group"]: {"id": row["id"], "q": row["question"], "gold": row["gold"]} for row in rows}
    index = {
        "step": step, "stage": rows[0]["group"].rpartition("/")[0] if rows else "", "groups": list(groups),
        "g": [groups[row["group"]] for row in rows], "r": [_short(row["reward"]) for row in rows],
        "a": [_short(row["advantage"]) for row in rows], "v": [row["verdict"] for row in rows],
        "f": [int(row["fate"] == "trained") for row in rows], "n": [len(row["output_ids"]) for row in rows],
        "t": [int(row["finish_reason"] == "length") for row in rows],
        "m": [_short(max((abs(x) for x in row.get("mismatch") or () if x is not None), default=None)) for row in rows],
    }  # fmt: skip
    data = {"asked": [asked[name] for name in groups], "rows": [_row(row, pieces) for row in rows]}
    return Part(index, gzip.compress(json.dumps(data, ensure_ascii=False).encode(), 6, mtime=0))


def _row(row: dict, pieces: Pieces | None) -> dict:
    """A sample's fields by short names; what is empty is left out."""
    out = {
        "i": row["index"], "try": row["attempt"], "v": row["versions"], "lives": row.get("lives"), "t": row["response"],
        "x": row["extracted"], "c": row["components"], "w": row["reward_version"], "why": row["reason"],
        "end": row["finish_reason"], "e": row.get("events"), "adv": row.get("advantages"), "tool": row.get("tool_tokens"),
        "p": levels(row.get("logprobs") or ()), "m": levels(row.get("mismatch") or ()),
        "n": lengths(row["output_ids"], row["response"], pieces) if pieces else None,
    }  # fmt: skip
    return {key: value for key, value in out.items() if value not in (None, "", [], {})}


def lengths(ids: Sequence[int], text: str, pieces: Pieces) -> list[int] | None:
    """How many UTF-16 units of the text each token is; None where the tokens' texts do not make the output's."""
    parts = pieces(ids)
    return [len(part.encode("utf-16-le")) // 2 for part in parts] if "".join(parts) == text else None


def levels(values: Sequence[float | None]) -> str:
    """A character a number: see `LEAST`."""
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    with np.errstate(divide="ignore"):
        level = np.clip(np.rint(PER_DECADE * np.log10(np.abs(numbers) / LEAST)) + 1, 0, LEVELS - 1)
    code = np.where(np.isnan(numbers), ord(UNKNOWN) - FIRST, np.where(numbers < 0, level + LEVELS * (level > 0), level))
    return "".join(map(chr, (code.astype(int) + FIRST).tolist()))


def token_pieces(run_dir: Path, model: str | None) -> Pieces | None:
    """By the tokenizer of the run's model; None where that is not on this machine."""
    for folder in (run_dir / "model", Path(model or run_dir / "model")):
        if (folder / "tokenizer_config.json").is_file():
            from transformers import AutoTokenizer

            from reward.labels.steps import StepFinder

            return StepFinder(AutoTokenizer.from_pretrained(folder), "newline").pieces
    return None


def parts_of(run_dir: Path, steps: Sequence[int], pieces: Pieces | None) -> Iterator[Part]:
    """Of these steps."""
    files = sample_files(run_dir)
    yield from (read_part(files[step], step, pieces) for step in steps)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
