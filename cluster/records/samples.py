"""What a step leaves behind for people: its metrics from the batch, and a line for every sample; files whole or not at all."""

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from cluster.records.metrics import read_jsonl
from learner.algorithms.credit import has_spread
from reward.types import FAILURES, ScoredGroup, ScoredSample, samples_of
from rollout.types import FinishReason, PolicyVersion, Sample

if TYPE_CHECKING:
    from learner.types import StepReport

COMPONENTS = {"correct": "accuracy", "format": "format", "model": "model_reward", "spread": "reward_spread"}
"""Components that are known by another name than `reward_<component>`."""


def attempts(samples: Iterable[Sample]) -> Iterator[dict]:
    """The samples as arguments of `Ledger.record`: one {groups, attempt} for every attempt among them."""
    by_attempt: dict[int, dict[str, list[int]]] = {}
    for s in samples:
        by_attempt.setdefault(s.attempt, {}).setdefault(s.group_id, []).append(s.index)
    for attempt, groups in sorted(by_attempt.items()):
        yield {"groups": groups, "attempt": attempt}


def by_reason(batch: Iterable[ScoredSample], otherwise: str) -> dict[str, list[Sample]]:
    """Outputs that are dropped, by why: for want of a score, or `otherwise`."""
    out: dict[str, list[Sample]] = {}
    for s in batch:
        out.setdefault(s.verdict.reason if s.verdict.failed else otherwise, []).append(s.sample)
    return out


def batch_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """The metrics that the batch itself tells (see METRICS): lengths always; what became of judging where that was asked."""
    batch = samples_of(groups)
    out = {"response_length": fmean(len(s.sample.output_ids) for s in batch)}
    if not all(all(s.sample.sampled_mask) for s in batch):
        out["programs"] = fmean(_programs(s.sample) for s in batch)
    if guessed := sum(s.sample.guesses[0] for s in batch):
        out["accepted_share"] = sum(s.sample.guesses[1] for s in batch) / guessed
    if all(s.verdict.status == "given" for s in batch):
        return out
    out["truncated_share"] = fmean(s.sample.finish_reason is FinishReason.LENGTH for s in batch)
    out["retried_share"] = fmean(s.sample.attempt > 0 for s in batch)
    out["unscored_share"] = fmean(s.verdict.failed for s in batch)
    for status in FAILURES:
        out[f"{status}_share"] = fmean(s.verdict.status == status for s in batch)
    if times := sorted(s.verdict.seconds for s in batch if s.verdict.seconds is not None):
        out["judge_p50"], out["judge_p99"] = (times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
    return out | _rewards(groups)


def staleness(groups: Sequence[ScoredGroup], version: PolicyVersion) -> dict[str, float]:
    """By how many steps the weights that began each output are older than those that it trains, `version`."""
    behind = [version - s.sample.versions[0][0] for s in samples_of(groups)]
    shares = {f"staleness_{age}": count / len(behind) for age, count in sorted(Counter(behind).items())}
    return {"staleness_mean": fmean(behind), "staleness_max": max(behind), **shares}


def _rewards(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Means over the scored outputs, of the reward and of every component; and how many groups say something."""
    with_score = [[s for s in group.scored if s.verdict.status == "score"] for group in groups]
    scored = [s for group in with_score for s in group]
    components: dict[str, list[float]] = {}
    for s in scored:
        for name, value in s.verdict.components.items():
            components.setdefault(COMPONENTS.get(name, f"reward_{name}"), []).append(value)
    out = {name: fmean(values) for name, values in components.items()}
    if scored:
        out["reward"] = fmean(s.verdict.reward for s in scored if s.verdict.reward is not None)
    several = [group for group in with_score if len(group) > 1]
    if any(len(group.scored) > 1 for group in groups):
        out["thin_group_share"] = 1 - len(several) / len(groups)
    if several:
        flat = [group for group in several if not has_spread(group)]
        out["zero_variance_share"] = len(flat) / len(several)
        if "accuracy" in out:
            right = [fmean(s.verdict.components.get("correct", 0.0) for s in group) for group in flat]
            out |= {f"all_{what}_share": right.count(x) / len(several) for what, x in (("right", 1.0), ("wrong", 0.0))}
    return out


def _programs(sample: Sample) -> int:
    """How many programs of an output ran: each left a run of tokens that the policy did not sample."""
    return sum(before and not now for before, now in pairwise((True, *sample.sampled_mask)))


def sample_rows(
    groups: Sequence[ScoredGroup],
    lives: Mapping[str, int],
    advantages: Sequence[float | None] | None = None,
    report: "StepReport | None" = None,
) -> Iterator[dict]:
    """One row a sample for samples/step_N.jsonl, which `cohort score` reads: what was asked, how the output was made, what it
    says, how it was judged, what became of it. `lives`: see `Serving`. `advantages`: of each sample, None for one that was not
    trained. `report`: of the step, for what is told of each token."""
    batch, nothing = [(group.question, scored) for group in groups for scored in group.scored], [None] * len(samples_of(groups))
    by_token = (report.token_advantages, report.mismatch) if report else ((), ())
    columns = zip(advantages or nothing, *(rows or nothing for rows in by_token), strict=True)
    for (asked, scored), (advantage, token_advantages, mismatch) in zip(batch, columns, strict=True):
        s, v = scored.sample, scored.verdict
        made_by = [str(version) for version, _ in s.versions] + [f"reward model {v.reward_version}"] * bool(v.reward_version)
        yield {
            "group": s.group_id,
            "ordinal": s.ordinal,
            "index": s.index,
            "attempt": s.attempt,
            "versions": s.versions,
            "lives": {name: lives[name] for name in made_by},
            "id": asked.id,
            "question": asked.text,
            "gold": asked.gold,
            "response": s.text,
            "extracted": v.extracted,
            "verdict": v.status,
            "reward": v.reward,
            "components": v.components,
            "reward_version": v.reward_version,
            "reason": v.reason,
            "advantage": advantage,
            "fate": "dropped" if advantage is None else "trained",
            "finish_reason": s.finish_reason,
            "prompt_ids": s.prompt_ids,
            "output_ids": s.output_ids,
            "logprobs": [round(x, 4) if math.isfinite(x) else None for x in s.logprobs],
            "mismatch": [float(f"{x:.3g}") if math.isfinite(x) else None for x in mismatch or ()],
            "advantages": runs(token_advantages or ()),
            "events": [[event.position, event.value] for event in scored.events],
            "tool_tokens": [at for at, sampled in enumerate(s.sampled_mask) if not sampled],
        }


def runs(values: Sequence[float]) -> list[list[float]]:
    """[first token, value] of every stretch of equal values."""
    return [[next(run)[0], value] for value, run in groupby(enumerate(values), key=lambda pair: pair[1])]


def write_rows(path: Path, rows: Iterable[dict | list]) -> None:
    """A whole jsonl file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """A whole file at once."""
    _write_whole(path, [text])


def _write_whole(path: Path, parts: Iterable[str]) -> None:
    """A reader, and a crash at any moment, sees the old file or the new one."""
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)  # where the disk is full, it is not for this


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that takes the path's name when the block ends: what was there before stays until then."""
    beside = path.with_name(path.name + ".new")
    shutil.rmtree(beside, ignore_errors=True)
    yield beside
    shutil.rmtree(path, ignore_errors=True)
    beside.rename(path)


def evaluation_rows(run_dir: Path, name: str = "evaluations.jsonl") -> list[dict]:
    """The evaluations of a run so far (or those of its reward model), in the order of steps."""
    path = run_dir / name
    return read_jsonl(path) if path.exists() else []
