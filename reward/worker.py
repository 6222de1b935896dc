"""The reward worker: a scorer as the plain class that becomes a remote actor."""

import os
import socket
from collections.abc import Sequence

from reward.config import RewardConfig
from reward.scorer import RuleScorer
from reward.types import ScoredSample
from rollout.types import Question, Sample


class RewardWorker:
    """Scores batches of samples. Stateless between calls, so a batch may be scored again on any other worker."""

    def __init__(self, config: RewardConfig):
        self._config = config
        self._scorer = RuleScorer(config)

    def score(self, questions: Sequence[Question], samples: Sequence[Sample]) -> list[ScoredSample]:
        return self._scorer.score(questions, samples)

    def describe(self) -> dict[str, str | int]:
        """Who this is: for logs and the run's summary."""
        return {
            "role": "reward",
            "scorer": type(self._scorer).__name__,
            "answer_format": self._config.answer_format,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
