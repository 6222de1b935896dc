"""The state between two steps of a run: what a checkpoint holds, and what a stop may still save."""

import copy
import json
from collections.abc import Callable, Sequence

from pydantic import TypeAdapter

from cluster.fleet.learner_group import LearnerFailed
from cluster.records.ledger import Ledger
from cluster.records.state import State
from cluster.run.checkpoints import Checkpoints, Writer
from cluster.run.progress import Progress
from cluster.stopping import RunFailed
from rollout.types import Group

_GROUPS = TypeAdapter(Sequence[Group])


def sampled_ahead(state: State) -> Sequence[Group]:
    """What a checkpoint's run had sampled for steps after it."""
    return _GROUPS.validate_json(json.dumps(state["ahead"]))


class Boundary:
    """The last boundary of a run: it can be saved until the learner goes on from it, whatever is sampled meanwhile."""

    def __init__(
        self, checkpoints: Checkpoints, progress: Progress, ledger: Ledger, learner: Writer, state: Callable[[], State]
    ):
        """`state` is whatever else only a step of the learner changes."""
        self._checkpoints, self._progress, self._ledger = checkpoints, progress, ledger
        self._learner, self._state = learner, state
        self._here: State | None = None
        """What sampling goes on to change, as it was; None while the learner is past it."""
        self._ahead: Sequence[Group] = ()

    def mark(self, ahead: Sequence[Group]) -> None:
        """A step is finished; `ahead`: what is sampled for later ones. Raises CheckpointFailed if that under way has failed."""
        self._checkpoints.finish(wait=False)
        here = {**self._progress.state(), "step": self._progress.step, "ledger_offset": self._ledger.offset()}
        self._here, self._ahead = copy.deepcopy(here), ahead

    def leave(self) -> None:
        """The learner, or what reward models are trained on, is about to change."""
        self._here = None

    def save(self) -> None:
        """Begin the boundary's checkpoint, written while the run goes on. Raises RuntimeError where the learner is past it, and
        CheckpointFailed."""
        if self._here is None:
            raise RuntimeError("no checkpoint can be made between two boundaries")
        ahead = _GROUPS.dump_python(self._ahead, mode="json")
        state = {**self._here, "incarnation": self._ledger.incarnation, "ahead": ahead, **self._state()}
        self._checkpoints.save(state["step"], self._learner, state)

    @property
    def seconds(self) -> float:
        """That the newest checkpoint took."""
        return self._checkpoints.seconds

    def finish(self) -> None:
        """Wait for the checkpoint that is being written. Raises CheckpointFailed."""
        self._checkpoints.finish()

    def fail(self, error: Exception) -> None:
        """The run fails: wait for the checkpoint that is being written, unless its writers are what failed. Where that fails
        too, raises RunFailed with both errors."""
        if isinstance(error, LearnerFailed):
            return
        try:
            self.finish()
        except Exception as second:
            raise RunFailed(f"{error}; and {second}") from error

    def restored(self, ahead: Sequence[Group]) -> None:
        """The run is where a checkpoint was taken."""
        self._checkpoints.begun_from(self._progress.step)
        self.mark(ahead)

    def keep(self, *, in_time: bool) -> str:
        """After a stop: save the boundary if it can be and is not yet; where the run goes on, for people."""
        checkpoints = self._checkpoints
        try:
            if in_time:
                checkpoints.finish()
                if self._here is not None and self._here["step"] > checkpoints.newest_step:
                    self.save()
                    checkpoints.finish()
        except KeyboardInterrupt:  # the grace period is over; what was written is incomplete, and gone
            pass
        saved = checkpoints.newest_step
        lost = self._progress.step - saved
        missing = f" (finished steps lost: {lost}; no checkpoint could be made of them in time)" if lost else ""
        return f"stopped by a signal after step {saved}{missing}; `cohort resume {checkpoints.run_dir}` goes on from here"
