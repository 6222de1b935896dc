"""The rules of a run's alarms: the driver, Prometheus and the docs read this one table."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.monitoring.conditions import Above, Apart, Below, Condition, Full, Grown, Shrunk
from cluster.records.catalogue import METRICS


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An alarm: when it is raised, what it says, and what helps."""

    when: Condition
    title: str
    cause: str
    """The likeliest."""
    knob: str
    """What to change, with the configuration's keys."""

    def what(self, now: float, other: float) -> str:
        """What is found; the numbers are those of `Condition.found`."""
        names = " + ".join(self.when.metrics) if isinstance(self.when, Above) else self.when.metrics[0]
        shown = [_shown(x, METRICS[self.when.metrics[0]].unit) for x in (now, other)]
        return f"{self.title}: {names} is {shown[0]}, {self.when.relation} {shown[1]}"

    @property
    def advice(self) -> str:
        return f"Likely cause: {self.cause}. What helps: {self.knob}."


RULES: Mapping[str, Rule] = {
    "mismatch_rising": Rule(
        when=Grown("mismatch_mean", 2.0, 0.02),
        title="engine and learner differ more and more",
        cause="outputs are older than they were, or rounding grows with the weights' moves and the lengths",
        knob="a lower stages.*.max_staleness, weighting.old: learner with a behaviour weight, or rollout.dtype: float32",
    ),
    "entropy_collapse": Rule(
        when=Shrunk("entropy", 0.3, "mismatch_mean"),
        title="the policy's entropy collapses",
        cause="the learning rate is too high or few outputs are rewarded again and again, and the policy stops exploring",
        knob="a lower stages.*.optimizer.learning_rate, a higher weighting.clip_high, or a KL term (weighting.kl)",
    ),
    "truncation": Rule(
        when=Above(("truncated_share",), 0.2),
        title="outputs run out of tokens",
        cause="rollout.max_new_tokens is below what answers need, or the policy learns to ramble",
        knob="a larger rollout.max_new_tokens, or a reward component for the length",
    ),
    "all_wrong": Rule(
        when=Above(("all_wrong_share",), 0.5),
        title="most groups are all wrong and teach nothing",
        cause="the questions are too hard for the policy, or right answers are not recognised",
        knob="stages.*.selection by_difficulty, a larger stages.*.samples_per_question, a warm start (sft); and"
        " `cohort score` on samples/, which shows what the judge makes of answers",
    ),
    "all_right": Rule(
        when=Above(("all_right_share",), 0.7),
        title="most groups are all right and teach nothing",
        cause="the questions are too easy by now",
        knob="harder questions, stages.*.selection by_difficulty or prioritised, or stages.*.max_refills",
    ),
    "reward_hacking": Rule(
        when=Apart("accuracy", "reward", 0.05),
        title="accuracy falls while the reward rises",
        cause="the policy exploits the reward model, or a component that is easier than to answer right",
        knob="a newer reward model (iterative stages), a larger weight of correct answers, or a KL term (weighting.kl)",
    ),
    "staleness": Rule(
        when=Full("staleness_mean", "staleness_bound", 2.0),
        title="outputs are as old as they may be",
        cause="the learner is slower than the engines, which wait for it",
        knob="a lower stages.*.max_staleness, which costs no time here, more learner.ranks or fewer rollout.workers",
    ),
    "judge_failures": Rule(
        when=Above(("killed_share", "error_share"), 0.02),
        title="judges fail",
        cause="the reward function raises, or takes longer than it may",
        knob="the reasons in samples/, the reward function, and reward.judge_seconds",
    ),
    "engines_idle": Rule(
        when=Below("rollout_busy", 0.2),
        title="engines are idle most of the time",
        cause="the learner or the judges are the slow side",
        knob="fewer rollout.workers (`cohort scale`), more learner.ranks or reward.workers, or stages.*.max_staleness: 1",
    ),
    "not_finite": Rule(
        when=Above(("skipped",), 0.0),
        title="updates are left out because they are not finite",
        cause="the learning rate is too high, or an output's log-probability is -inf",
        knob="a lower stages.*.optimizer.learning_rate, or learner.compute_dtype: float32",
    ),
}
"""By the alarm's name."""


def _shown(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "share" else f"{value:.3g} {unit}"
