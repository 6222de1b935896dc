"""Estimates of layouts by the cost model and the simulation, and the search for the quickest one of each way to work."""

from dataclasses import dataclass

from cluster.fleet.demand import WIDTH
from cluster.planning import cost, memory
from cluster.planning.fit import Cluster, Layout, fitting, share
from cluster.planning.memory import Parts
from cluster.planning.pipeline import Ahead, Course, Engine, Timing, dealt, simulate
from cluster.planning.shapes import Shape
from cluster.planning.workload import Workload

SHARED, APART = "shared", "apart"
MODES = {SHARED: Ahead(0), APART: Ahead(0), "ahead": Ahead(1), "in flight": Ahead(1, in_flight=True)}
"""Ways in which the roles may work, those first that are easier to live with: in turns on the same GPUs, in turns on GPUs of
their own, with sampling a step ahead of training, and so with new weights for outputs on their way."""
AS_WRITTEN = "recipe"
STEPS, FINALISTS = 6, 3
"""Steps that a simulation counts, and how many layouts of a mode are simulated so."""
WORTH = 0.95
"""What a harder way to work must take of an easier one's time to be chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of one layout in one mode."""

    mode: str
    layout: Layout
    course: Course
    train: float
    sync: float
    score: float
    requests: int
    """That an engine runs at once."""
    learner: Parts
    engine: Parts
    ahead: Ahead

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.course.step

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each."""
        return {"generate": self.course.generate, "score": self.score, "train": self.train, "sync": self.sync}

    @property
    def memory(self) -> dict[str, Parts]:
        """Of a GPU, by role."""
        return {"learner": self.learner, "engine": self.engine}

    def dollars(self, work: Workload, cluster: Cluster, price: float) -> float:
        """Of all steps of the stage on the whole cluster, at a price for a GPU and hour."""
        return self.seconds * work.steps * cluster.devices * price / 3600

    def overrides(self, stage: str) -> list[str]:
        """For the recipe, as `cohort train` takes them."""
        layout = self.layout
        found = [f"rollout.workers={layout.engines}", f"rollout.tensor_parallel_size={layout.tensor_parallel}"]
        found += [f"learner.ranks={layout.ranks}", f"rollout.sleep={str(layout.shared).lower()}"]
        found += [f"stages.{stage}.max_staleness={self.ahead.staleness}"]
        return [*found, f"stages.{stage}.in_flight={str(self.ahead.in_flight).lower()}"]


class Planner:
    """Estimates for one workload on one cluster."""

    def __init__(self, shape: Shape, work: Workload, cluster: Cluster):
        self.shape, self.work, self.cluster = shape, work, cluster
        self._batches = [work.batch(seed) for seed in range(STEPS + 2 * max(1, work.staleness) + 1)]
        self._trainings: dict[int, float] = {}

    def best(self) -> list[Estimate]:
        """The quickest layout of each mode that has one. Raises NothingFits."""
        found = fitting(self.shape, self.work, self.cluster)
        rough = {layout: self.estimate(layout, APART, steps=1) for layout in found}
        out = []
        for mode, ahead in MODES.items():
            mine = [layout for layout in found if layout.shared == (mode == SHARED)]
            mine.sort(key=lambda x, ahead=ahead: _roughly(rough[x], ahead.staleness > 0))
            finalists = [self.estimate(layout, mode) for layout in mine[:FINALISTS]]
            out += [min(finalists, key=lambda one: one.seconds)] if finalists else []
        return out

    def estimate(self, layout: Layout, mode: str = AS_WRITTEN, steps: int = STEPS) -> Estimate:
        """A layout simulated, for so many steps after those that fill the pipeline; one step is that alone."""
        work, device = self.work, self.cluster.device
        # On CPUs the roles have the same cores.
        ahead = MODES[APART] if device.is_cpu else MODES.get(mode, Ahead(work.staleness, work.in_flight))
        held = memory.engine(self.shape, work, layout.tensor_parallel, device.memory, share(work, layout))
        if device.is_cpu:
            held["cache"] = work.cache
        requests = memory.room(self.shape, work, held["cache"], layout.tensor_parallel)
        each = cost.engine(self.shape, work, device, layout.tensor_parallel, layout.engines)
        score, prompt = cost.score(self.shape, work, device), max(1, round(work.lengths.prompt))
        near = self.cluster.nodes == 1
        asleep = WIDTH[work.engine_dtype] * self.shape.parameters / layout.tensor_parallel if layout.shared else None
        timing = Timing(
            train=self.training(layout.ranks),
            sync=cost.sync(cost.sent(self.shape, work), device, within_node=near, asleep=asleep),
            score=score / work.questions,
            keep_kv=work.keep_kv,
            ahead=ahead,
        )
        batches = self._batches[: 1 if steps == 1 else steps + 2 * ahead.staleness + 1]
        engines = [Engine(cost=each, requests=max(1, requests)) for _ in range(layout.engines)]
        return Estimate(
            mode=mode,
            layout=layout,
            course=simulate(engines, [dealt(batch, prompt, layout.engines) for batch in batches], timing),
            train=timing.train,
            sync=timing.sync,
            score=score,
            requests=requests,
            learner=memory.learner(self.shape, work, layout.ranks),
            engine=held,
            ahead=ahead,
        )

    def training(self, ranks: int) -> float:
        """Seconds of a step's training on so many ranks."""
        if ranks not in self._trainings:
            load = cost.load(self.work, self._batches[0], ranks, self.cluster.device)
            group = (ranks, self.cluster.per_node)
            self._trainings[ranks] = cost.train(
                self.shape, load, cost.learning_of(self.shape, self.work), self.cluster.device, group
            )
        return self._trainings[ranks]


def choice(found: list[Estimate]) -> Estimate:
    """The quickest, unless an easier way to work is nearly as quick."""
    best = found[0]
    for one in found[1:]:
        if one.seconds < WORTH * best.seconds:
            best = one
    return best


def _roughly(one: Estimate, ahead: bool) -> float:
    """Seconds of a step, from those of its phases."""
    phases = (one.course.generate, one.train)
    return (max(phases) if ahead else sum(phases)) + one.sync
