"""The learner of a simulated run: its weights are a number, which follows from all that it is trained on."""

import hashlib
from types import SimpleNamespace

from cluster.fibers import HUB
from cluster.fleet.learner_group import LearnerFailed
from tests.cluster.elastic import Violated
from tests.reward.builders import flat


class Learner:
    """The part of the roles that learns; `rng`, `faults` and `world` are theirs."""

    def learn_anew(self):
        """A group with the weights on disk, which has saved nothing and sent nothing."""
        self.weights, self.kept, self.writes, self.dead = 0, {}, None, False

    def restart_learner(self, why):
        self.deaths += 1
        self._pass(self._seconds())
        self.learn_anew()

    def sound(self):
        """A rank may die at any call, and stays dead."""
        self.dead |= self.rng.random() < self.faults / 20
        if self.dead:
            raise LearnerFailed("learner-0: killed")

    def _learn(self, method, *args):
        self.sound()
        if method == "load":
            self.weights = int((args[0] / "weights").read_text())
            return None
        if method == "writing":
            return self._writing(*args)
        self._pass(self._seconds())
        self.sound()
        if method == "save":
            args[0].mkdir()
            (args[0] / "weights").write_text(str(self.weights))
            self.writes = (HUB.world.now() + self._seconds(), args[1])
        if method == "step":
            batch = flat(args[0])
            for one in batch:
                self._check(one.sample)
            said = repr([(one.sample.output_ids, one.sample.text) for one in batch])
            self.weights = int.from_bytes(hashlib.blake2b(f"{self.weights}{said}".encode(), digest_size=4).digest())
            return SimpleNamespace(metrics={}, advantages=[0.0] * len(batch), tokens=1, token_advantages=(), mismatch=())
        return None

    def _writing(self, wait):
        """A checkpoint is whole when its time has come; a crash before leaves half of it."""
        if self.writes is None:
            return False
        at, written = self.writes
        if wait:
            self._pass(at - HUB.world.now())
        if HUB.world.now() < at:
            return True
        self.writes = None
        written({"weights": 1})
        return False

    def _check(self, sample):
        version = sample.versions[-1][0]
        if int(sample.text) not in self.world.published[version]:
            raise Violated(f"{sample.group_id} was made by weights that are not those of version {version}")

    def learner_logprobs(self, sequences):
        self.sound()
        return [[-self.weights / 1e3]]
