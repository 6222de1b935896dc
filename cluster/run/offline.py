"""Outputs of the policy that a stage starts from, made once and judged, in a file of the run directory; pairs of them where
pairs are trained."""

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter

from cluster.config.stages import StageConfig
from cluster.fleet.sampler import leases
from cluster.records.metrics import read_jsonl
from cluster.records.samples import write_rows
from cluster.run.collector import Collector
from reward.labels.examples import pairs
from reward.types import ScoredGroup
from rollout.data.datasets import QuestionSet

log = logging.getLogger("cohort")

CHUNK = 64
"""Questions that are asked together; what a kill loses at most."""
_GROUP = TypeAdapter(ScoredGroup)


def make(collector: Collector, stage: StageConfig, train: QuestionSet, seed: int, path: Path) -> None:
    """Make the file. What is judged is kept beside it, chunk by chunk: a later life of the run begins with the first chunk that
    is not whole there, so that engines are asked for the same chunks."""
    count = stage.offline_questions or min(len(train), stage.steps * stage.questions_per_step)
    beside = path.with_suffix(".part")
    kept = read_jsonl(beside) if beside.exists() else []
    done = len(kept) // CHUNK * CHUNK
    write_rows(beside, kept[:done])
    with beside.open("a", encoding="utf-8") as file:
        for start in range(done, count, CHUNK):
            questions = [train.question(n) for n in range(start, min(start + CHUNK, count))]
            asked = leases(questions, f"{stage.name}/initial", stage.samples_per_question)
            sampled = collector.sample(asked, f"generate for {stage.name}", booked=False)
            scored = collector.score(sampled, stage.reward_source, f"score for {stage.name}", whole=count <= CHUNK)
            file.writelines(json.dumps(_row(group), ensure_ascii=False) + "\n" for group in scored)
            file.flush()
            log.info("stage %s: sampled outputs for %d of %d questions", stage.name, start + len(questions), count)
    made = (one for group in groups(beside) for one in (_pairs(stage, group, seed) if stage.pairs else [group]))
    write_rows(path, map(_row, made))
    beside.unlink()


def groups(path: Path) -> Iterator[ScoredGroup]:
    """Those of a file."""
    with path.open("rb") as file:
        yield from map(_GROUP.validate_json, file)


def _pairs(stage: StageConfig, group: ScoredGroup, seed: int) -> list[ScoredGroup]:
    rng = random.Random(f"{seed}/{group.scored[0].sample.group_id}/pairs")
    return pairs([group], per_group=stage.pairs_per_question, rng=rng)


def _row(group: ScoredGroup) -> dict:
    return _GROUP.dump_python(group, mode="json")
