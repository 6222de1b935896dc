"""The state between two steps of a run: what a checkpoint holds, and what a stop may still save."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.run.loop import Loop


class Boundary:
    """The last boundary of a loop: it can be saved until the learner goes on from it, whatever is sampled meanwhile."""

    def __init__(self, loop: "Loop"):
        self.loop = loop
        self._here: dict[str, Any] | None = None
        """What sampling goes on to change, as it was; None while the learner is past it."""
        self._saved = 0
        """The step of the newest checkpoint."""

    def mark(self) -> None:
        """A step is finished."""
        loop = self.loop
        self._here = {
            "stage": loop.stage, "done": loop.done, "step": loop.step, "memory": copy.deepcopy(loop.memory),
            "ledger_offset": loop.ledger.offset(),
        }  # fmt: skip

    def leave(self) -> None:
        """The learner, or what reward models are trained on, is about to change."""
        self._here = None

    def save(self) -> None:
        """Write the boundary's checkpoint."""
        loop = self.loop
        state = self._here | {
            "serving": loop.serving.state(), "incarnation": loop.ledger.incarnation, "seconds": loop.seconds,
            "sampled_tokens": loop.sampled_tokens, "labels": loop.labeller.state(),
        }  # fmt: skip
        loop.checkpoints.save(state["step"], lambda directory: loop.roles.learn("save", directory)[0], state)
        self._saved = state["step"]

    def restore(self, place: Path, state: dict[str, Any]) -> None:
        """The learner takes its state, and engines and reward actors the same versions with the same bytes as before."""
        loop = self.loop
        loop.stage, loop.done, loop.memory = state["stage"], state["done"], state["memory"]
        loop.seconds, loop.sampled_tokens = state["seconds"], state["sampled_tokens"]
        loop.labeller.restore(state["labels"])
        stage = loop.config.stages[loop.stage]
        loop.roles.learn("load", place / "learner", stage.spec(loop.config.reward.model, loop.config.seed))
        with loop.timed("sync"):
            # While a reward model is trained, nobody is judged by it.
            loop.serving.restore(place, state["serving"], judged=stage.trains_policy)
        self._saved = state["step"]
        self.mark()

    def keep(self) -> str:
        """After a stop: save the boundary if it can be and is not yet; where the run goes on, for people."""
        try:
            if self._here is not None and self._here["step"] > self._saved and not self.loop.stop.over:
                self.save()
        except KeyboardInterrupt:  # the grace period is over; what was written is incomplete, and gone
            pass
        lost = self.loop.step - self._saved
        missing = f" (finished steps lost: {lost}; no checkpoint could be made of them in time)" if lost else ""
        return f"stopped by a signal after step {self._saved}{missing}; `cohort resume {self.loop.dir}` goes on from here"
