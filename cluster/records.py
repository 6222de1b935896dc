"""What a step leaves behind for people: its metrics from the batch, and a line for every sample; files whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from cluster.metrics import Mean, read_jsonl
from learner.credit import groups_of, has_spread
from reward.pool import KILLED
from reward.types import ScoredSample
from rollout.types import FinishReason, Sample


def attempts(samples: Iterable[Sample]) -> Iterator[dict]:
    """The samples as arguments of `Ledger.record`: one {groups, attempt} for every attempt among them."""
    by_attempt: dict[int, dict[str, list[int]]] = {}
    for s in samples:
        by_attempt.setdefault(s.attempt, {}).setdefault(s.group_id, []).append(s.index)
    for attempt, groups in sorted(by_attempt.items()):
        yield {"groups": groups, "attempt": attempt}


def batch_metrics(batch: Sequence[ScoredSample]) -> dict[str, float]:
    """The metrics that the batch itself tells (see METRICS): lengths always; rewards only where something was judged."""
    lengths = Mean.of(len(s.sample.output_ids) for s in batch)
    out = {"response_length": lengths.value}
    if not all(all(s.sample.sampled_mask) for s in batch):
        out["programs"] = Mean.of(_programs(s.sample) for s in batch).value
    scored = [s for s in batch if s.verdict.status == "score"]
    if not scored:
        return out
    out["truncated_share"] = Mean.of(s.sample.finish_reason is FinishReason.LENGTH for s in batch).value
    out["unscorable_share"] = 1 - len(scored) / len(batch)
    out["reward"] = Mean.of(s.verdict.reward for s in scored).value
    for part, name in (("correct", "accuracy"), ("format", "format"), ("model", "model_reward"), ("spread", "reward_spread")):
        # `correct` is absent where a model scored an output whose reference answer cannot be judged.
        if known := [s.verdict.components[part] for s in scored if part in s.verdict.components]:
            out[name] = Mean.of(known).value
    if times := sorted(s.verdict.seconds for s in batch if s.verdict.seconds is not None):
        out["judge_p50"], out["judge_p99"] = (times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
        out["judge_killed_share"] = Mean.of(s.verdict.reason.startswith(KILLED) for s in batch).value
    groups = ([scored[i] for i in indices] for indices in groups_of(scored).values())
    out["zero_variance_share"] = Mean.of(not has_spread(group) for group in groups).value
    return out


def _programs(sample: Sample) -> int:
    """How many programs of an output ran: each left a run of tokens that the policy did not sample."""
    return sum(before and not now for before, now in pairwise((True, *sample.sampled_mask)))


def sample_rows(batch: Sequence[ScoredSample], advantages: Sequence[float | None], fates: Sequence[str]) -> Iterator[dict]:
    """One row a sample for samples/step_N.jsonl: how it was made, what it says, how it was judged, what became of it."""
    for scored, advantage, fate in zip(batch, advantages, fates, strict=True):
        s, v = scored.sample, scored.verdict
        yield {
            "group": s.group_id, "ordinal": s.ordinal, "index": s.index, "attempt": s.attempt, "versions": s.versions,
            "text": s.text, "extracted": v.extracted, "verdict": v.status, "reward": v.reward, "components": v.components,
            "reward_version": v.reward_version,
            "reason": v.reason, "advantage": advantage, "fate": fate, "finish_reason": s.finish_reason,
            "prompt_ids": s.prompt_ids, "output_ids": s.output_ids,
        }  # fmt: skip


def write_rows(path: Path, rows: Iterable[dict | list]) -> None:
    """A whole jsonl file at once: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(beside, path)


@contextmanager
def whole_directory(place: Path) -> Iterator[Path]:
    """A directory to fill that takes the place's name when the block ends: what was there before stays until then."""
    beside = place.with_name(place.name + ".new")
    shutil.rmtree(beside, ignore_errors=True)
    yield beside
    shutil.rmtree(place, ignore_errors=True)
    beside.rename(place)


def evaluation_rows(run_dir: Path, name: str = "evaluations.jsonl") -> list[dict]:
    """The evaluations of a run so far (or those of its reward model), in the order of steps."""
    path = run_dir / name
    return read_jsonl(path) if path.exists() else []
