"""What the names in metrics.jsonl stand for."""

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Metric:
    """What a name in metrics.jsonl stands for."""

    formula: str
    unit: str
    where: str
    """The package that measures it."""
    normal: tuple[float, float] | None = None
    """Least and most while all is well, where that can be said of any run."""

    @property
    def denominator(self) -> str:
        """What a share is of; empty of what is no quotient."""
        return self.formula.rpartition(" / ")[2].partition(",")[0] if " / " in self.formula else ""

    @property
    def range(self) -> str:
        """The normal one, for people."""
        return "" if self.normal is None else " to ".join(f"{x:g}" for x in dict.fromkeys(self.normal))

    @property
    def about(self) -> str:
        """Formula, unit and normal range in a sentence."""
        return f"{self.formula} ({self.unit}{f'; normally {self.range}' if self.normal else ''})"


def exported(name: str) -> str:
    """A metric's name among Ray's, which Prometheus reads with `ray_` before it."""
    return "cohort_" + re.sub(r"\W", "_", name, flags=re.ASCII)


OF_SYNC = {
    "gather": "the learner makes full tensors", "copy": "it has them hashed, added up and written, or streamed",
    "stage": "engines copy and check them beside what serves (shm)", "load": "engines load them",
    "verify": "what they hold is read back and compared", "canary": "engines read the fixed sequences",
    "canary_learner": "so does the learner",
}  # fmt: skip
"""Parts of a weight update, each measured on the slowest."""
METRICS: dict[str, Metric] = {
    "step": Metric("steps of the run so far, over all stages", "steps", "cluster"),
    "stage_number": Metric("the stage's place in the recipe, from 1", "stages", "cluster"),
    "version": Metric("committed weight updates when the step began", "updates", "cluster"),
    "life": Metric("life of the run, from 0, that made the version: both together are never used again", "lives", "cluster"),
    "reward": Metric("mean over scored outputs of the weighted sum of components", "reward", "reward"),
    "accuracy": Metric("correct outputs / scored outputs", "share", "reward"),
    "format": Metric("well-formed outputs / scored outputs", "share", "reward"),
    "response_length": Metric("mean of |o| over outputs", "tokens", "rollout"),
    "programs": Metric("mean over outputs of the programs that ran, or of an environment's replies", "programs", "rollout"),
    "accepted_share": Metric("guessed tokens that the policy took / guessed tokens (rollout.speculative)", "share", "rollout"),
    "truncated_share": Metric("outputs that ran out of tokens / outputs", "share", "rollout"),
    "zero_variance_share": Metric("groups of two scored outputs or more of equal reward / such groups", "share", "learner"),
    "all_right_share": Metric("of them, those whose outputs are all correct / such groups", "share", "learner"),
    "all_wrong_share": Metric("of them, those with no correct output / such groups", "share", "learner"),
    "thin_group_share": Metric("groups with fewer than two scored outputs / groups, where they are larger", "share", "learner"),
    "unscored_share": Metric("outputs without a score, for any of the next four reasons / outputs", "share", "cluster"),
    "rejected_share": Metric("outputs that may not be trained on and were not judged / outputs", "share", "rollout"),
    "unscorable_share": Metric("outputs whose reference answer cannot be judged / outputs", "share", "reward"),
    "killed_share": Metric("outputs whose judge was killed or died / outputs", "share", "reward"),
    "error_share": Metric("outputs whose judge raised / outputs", "share", "reward"),
    "judge_p50": Metric("median wall-clock of judging an output by the rule", "s", "reward"),
    "judge_p99": Metric("its 99th percentile", "s", "reward"),
    "kl": Metric("mean of pi_ref/pi - log(pi_ref/pi) - 1 over trained tokens (eq. 4)", "nats per token", "learner"),
    "clip_fraction": Metric("tokens where the min takes the constant branch / trained tokens", "share", "learner"),
    "entropy": Metric("mean entropy of pi over trained positions", "nats", "learner"),
    "ratio_mean": Metric("mean of pi/pi_old over trained tokens", "ratio", "learner"),
    "behaviour_mean": Metric("mean over trained tokens of w, the weight made of pi_old/mu", "ratio", "learner"),
    "effective_share": Metric("effective sample size (sum w)^2 / sum w^2 / trained tokens", "share", "learner"),
    "cut_share": Metric("tokens whose w is truncated or masked / trained tokens", "share", "learner"),
    "objective": Metric("the textbook objective of the stage's row, as its paper writes it", "objective", "learner"),
    "grad_norm": Metric("global norm of the gradient before clipping", "norm", "learner"),
    "learning_rate": Metric("rate of the step's last update", "rate", "learner"),
    "margin": Metric("mean over pairs of beta (m(o+) - m(o-)) (eq. 12)", "nats", "learner"),
    "ranked": Metric("pairs whose margin is positive / pairs", "share", "learner"),
    "reward_kl": Metric("mean of log(pi_old/pi_ref) over trained tokens (eq. 2)", "nats per token", "learner"),
    "teacher_kl": Metric("mean over trained tokens of log(pi_old/p_T), or of KL(pi || p_T)", "nats per token", "learner"),
    "model_reward": Metric("mean over scored outputs of the reward model's reward", "reward", "reward"),
    "reward_spread": Metric("mean standard deviation of an ensemble's scores", "reward", "reward"),
    "ranking_loss": Metric("mean over pairs of -log sigmoid(r(better) - r(worse))", "nats", "learner"),
    "ranking_accuracy": Metric("pairs that the reward model ranks right / pairs, before the update", "share", "learner"),
    "label_loss": Metric("mean binary cross-entropy over labels", "nats", "learner"),
    "label_accuracy": Metric("labels on whose side the reward model is / labels, before the update", "share", "learner"),
    "critic_value_loss": Metric("PPO's clipped value loss", "return squared", "learner"),
    "critic_value_clip_fraction": Metric("tokens whose value loss is the clipped one / trained tokens", "share", "learner"),
    "critic_explained_variance": Metric("1 - var(return - value) / var(return), before the update", "share", "learner"),
    "critic_grad_norm": Metric("global norm of the critic's gradient before clipping", "norm", "learner"),
    "critic_learning_rate": Metric("the critic's rate at the step's last update", "rate", "learner"),
    "critic_skipped": Metric("the critic's updates left out because something was not finite", "updates", "learner"),
    "critic_no_signal": Metric("the critic's updates left out because the gradient was 0", "updates", "learner"),
    "mismatch_mean": Metric("mean |log pi_engine - log pi_learner|, at equal weights unless sampled ahead", "nats", "learner"),
    "mismatch_p50": Metric("its median", "nats", "learner"),
    "mismatch_p90": Metric("its 90th percentile", "nats", "learner"),
    "mismatch_p99": Metric("its 99th percentile", "nats", "learner"),
    "mismatch_max": Metric("its largest value", "nats", "learner"),
    "canary_mean": Metric("mean of |log pi_engine - log pi_learner| on the fixed sequences after a commit", "nats", "cluster"),
    "tokens_per_second": Metric("sampled tokens / seconds_generate", "tokens/s", "cluster"),
    "seconds_generate": Metric("wall-clock of sampling", "s", "cluster"),
    "seconds_score": Metric("wall-clock of scoring", "s", "cluster"),
    "seconds_train": Metric("wall-clock of the updates", "s", "cluster"),
    "seconds_sync": Metric("wall-clock of the weight update and its canary", "s", "cluster"),
    **{f"seconds_sync_{part}": Metric(f"of it, {what}", "s", "cluster") for part, what in OF_SYNC.items()},
    "seconds_other": Metric("wall-clock in which none of the four is under way", "s", "cluster"),
    "seconds_waiting": Metric("wall-clock in which the learner waits for groups, or to publish", "s", "cluster"),
    "rollout_busy": Metric("seconds_generate / seconds_step", "share", "cluster"),
    "reward_busy": Metric("seconds_score / seconds_step", "share", "cluster"),
    "learner_busy": Metric("seconds_train / seconds_step", "share", "cluster"),
    "staleness_mean": Metric("mean over outputs of version - the version that began the output", "updates", "cluster"),
    "staleness_max": Metric("its largest value", "updates", "cluster"),
    "staleness_bound": Metric("what it may be at most (stages.*.max_staleness)", "updates", "cluster"),
    "waves_waiting": Metric("later steps' groups that are scored when the step begins, in steps", "steps", "cluster"),
    "rollout_workers": Metric("rollout workers that serve when the step begins", "workers", "cluster"),
    "reward_workers": Metric("reward workers that serve when the step begins", "workers", "cluster"),
    "deaths": Metric("workers of the run that were replaced so far, the learner's ranks as one", "workers", "cluster"),
    "retried_share": Metric("outputs that were asked for more than once / outputs", "share", "cluster"),
    "samples_leased": Metric("outputs that engines are asked for when the step begins", "outputs", "cluster"),
    "samples_generated": Metric("outputs that wait for their judge, or are judged, when it begins", "outputs", "cluster"),
    "samples_scored": Metric("outputs that wait for the learner when it begins", "outputs", "cluster"),
    "seconds_step": Metric("wall-clock of the step", "s", "cluster"),
    "trained_tokens": Metric("tokens with credit in the step's batch", "tokens", "learner"),
    "padding_share": Metric("padding / positions of the micro-batches", "share", "learner"),
    "skipped": Metric("updates left out because loss or gradient was not finite", "updates", "learner"),
    "no_signal": Metric("updates left out because every coefficient was 0", "updates", "learner"),
}
"""Every number of a line of metrics.jsonl; gauges have the names of `exported`, and those of evaluations.jsonl are there as
`evaluation/<name>`. Not here are `reward_<name>`, the mean of another component over scored outputs, and
`staleness_<n>`, outputs that are n versions old / outputs."""
NORMAL = {
    "truncated_share": (0.0, 0.1),
    "zero_variance_share": (0.0, 0.7),
    "all_right_share": (0.0, 0.7),
    "all_wrong_share": (0.0, 0.5),
    "thin_group_share": (0.0, 0.1),
    "unscored_share": (0.0, 0.1),
    "rejected_share": (0.0, 0.05),
    "unscorable_share": (0.0, 0.05),
    "killed_share": (0.0, 0.02),
    "error_share": (0.0, 0.02),
    "clip_fraction": (0.0, 0.3),
    "ratio_mean": (0.9, 1.1),
    "behaviour_mean": (0.9, 1.1),
    "effective_share": (0.5, 1.0),
    "cut_share": (0.0, 0.1),
    "ranked": (0.5, 1.0),
    "ranking_accuracy": (0.5, 1.0),
    "label_accuracy": (0.5, 1.0),
    "critic_explained_variance": (0.0, 1.0),
    "critic_skipped": (0.0, 0.0),
    "mismatch_mean": (0.0, 0.02),
    "canary_mean": (0.0, 0.1),
    "rollout_busy": (0.2, 1.0),
    "deaths": (0.0, 0.0),
    "retried_share": (0.0, 0.0),
    "padding_share": (0.0, 0.3),
    "skipped": (0.0, 0.0),
}
"""Of some metrics, the range in a run in which all is well."""
METRICS |= {name: replace(METRICS[name], normal=between) for name, between in NORMAL.items()}
