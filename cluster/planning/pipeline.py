"""A discrete-event simulation of steps: engines that sample waves of outputs, a learner, weight updates, bounded staleness.

As the loop does it (`cluster/run/buffer.py`): wave t may begin when t - s steps are done. Scheduled, waves are sampled one
after the other, and a new version waits until none is; in flight, waves share the engines, which it only interrupts.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from statistics import fmean

from cluster.planning.cost import EngineCost

Wave = Sequence[tuple[int, Sequence[int]]]
"""Of one engine: for each group the tokens of its prompt, and its outputs' lengths."""


@dataclass(kw_only=True)
class Engine:
    """One engine with continuous batching: every step gives each running request a token."""

    cost: EngineCost
    requests: int
    """That it runs at once."""
    now: float = 0.0
    busy: float = 0.0
    """Seconds in which it ran anything."""
    steps: float = 0.0
    """Engine steps so far."""
    tokens: float = 0.0
    """That its requests look at."""
    left: dict[int, int] = field(default_factory=dict)
    """By wave, outputs that are not done."""
    ended: dict[int, float] = field(default_factory=dict)
    """By wave, when its last one was."""
    _running: list[tuple[float, int, int]] = field(default_factory=list)
    """A heap of (step of the last token, wave, tokens at its end)."""
    _queue: deque[tuple[int, int, int, bool]] = field(default_factory=deque)
    """(wave, length, prompt tokens, whether these are to be read)."""

    def submit(self, number: int, wave: Wave, now: float) -> None:
        """A wave's part; a group's prompt is read once."""
        self.run(now)
        self.left[number], self.ended[number] = sum(len(lengths) for _, lengths in wave), now
        for prompt, lengths in wave:
            self._queue += [(number, length, prompt, i == 0) for i, length in enumerate(lengths)]
        self._admit()

    def pause(self, seconds: float, *, anew: bool) -> None:
        """A weight update; `anew`: running requests' keys and values are computed again."""
        self.now += seconds + (self.cost.prefill(self.tokens) if anew else 0.0)

    def run(self, until: float, wave: int | None = None) -> None:
        """Go on until this time, or until the wave's last output is done."""
        while self._running and self.now < until and (wave is None or self.left.get(wave, 0)):
            batch, ahead = len(self._running), self._running[0][0] - self.steps
            seconds = ahead * self.cost.step(batch, self.tokens + batch * ahead / 2)
            if self.now + seconds > until:
                ahead *= (until - self.now) / seconds
                seconds = until - self.now
                self._pass(seconds, ahead, batch)
                return
            self._pass(seconds, ahead, batch)
            self._finish()
        if not self._running and self.now < until < float("inf"):
            self.now = until

    def _pass(self, seconds: float, steps: float, batch: int) -> None:
        self.now, self.busy = self.now + seconds, self.busy + seconds
        self.steps, self.tokens = self.steps + steps, self.tokens + batch * steps

    def _finish(self) -> None:
        """All outputs whose last token this step was make room for others."""
        while self._running and self._running[0][0] <= self.steps + 1e-9:
            _, wave, tokens = heappop(self._running)
            self.tokens = max(0.0, self.tokens - tokens)
            self.left[wave] -= 1
            self.ended[wave] = self.now
        self._admit()

    def _admit(self) -> None:
        read = 0
        while self._queue and len(self._running) < self.requests:
            wave, length, prompt, new = self._queue.popleft()
            heappush(self._running, (self.steps + length, wave, prompt + length))
            self.tokens += prompt
            read += prompt * new
        seconds = self.cost.prefill(read)
        self.now, self.busy = self.now + seconds, self.busy + seconds


@dataclass(frozen=True, slots=True)
class Ahead:
    """How sampling may be ahead of training, as in a stage's settings."""

    staleness: int = 0
    in_flight: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of a step's other phases."""

    train: float
    sync: float
    score: float
    """From a wave's last output to its scores."""
    ahead: Ahead = Ahead()
    keep_kv: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a simulation shows, averaged over its steps but for the first ones, which fill the pipeline."""

    step: float
    generate: float
    """Seconds of sampling a wave, from its first request to its last output."""
    rollout_busy: float
    learner_busy: float
    waiting: float
    """Seconds of a step in which the learner waits for outputs."""


def simulate(engines: Sequence[Engine], waves: Sequence[Sequence[Wave]], timing: Timing) -> Course:
    """`waves`: for each step what each engine is asked for. Steps count while the pipeline is full: not the first ones, nor the
    last, with whose waves it runs empty."""
    last = len(waves) - timing.ahead.staleness
    first = min(timing.ahead.staleness + 1, last - 1)
    now, begun, over, ends, waited, sampled, busy = 0.0, 0, [0.0], [], [], [], [0.0]
    for step in range(last):
        for wave in range(begun, step + timing.ahead.staleness + 1):
            began = now if timing.ahead.in_flight else max(now, over[-1])
            _submit(engines, wave, waves[wave], began)
            if not timing.ahead.in_flight:
                over.append(_finish(engines, wave))
            sampled.append(began)
        begun = len(sampled)
        done = _finish(engines, step) if timing.ahead.in_flight else over[step + 1]
        sampled[step] = done - sampled[step]
        start = max(now, done + timing.score)
        waited.append(start - now)
        now = start + timing.train
        if timing.ahead.in_flight:
            for engine in engines:
                engine.run(now)
                engine.pause(timing.sync, anew=not timing.keep_kv)
        else:
            now = max(now, over[begun])
        now += timing.sync
        ends.append(now)
        busy.append(sum(engine.busy for engine in engines))
    count, span = last - first, now - ends[first - 1] if first else now
    return Course(
        step=span / count,
        generate=fmean(sampled[first:last]),
        rollout_busy=(busy[-1] - busy[first]) / len(engines) / span,
        learner_busy=timing.train * count / span,
        waiting=fmean(waited[first:]),
    )


def _submit(engines: Sequence[Engine], number: int, wave: Sequence[Wave], now: float) -> None:
    for engine, part in zip(engines, wave, strict=True):
        engine.submit(number, part, now)


def _finish(engines: Sequence[Engine], wave: int) -> float:
    """When the wave's last output is done, to where the engines that have some of it go on."""
    for engine in engines:
        engine.run(float("inf"), wave)
    return max(engine.ended[wave] for engine in engines)


def dealt(batch: Sequence[Sequence[int]], prompt: int, engines: int) -> list[list[tuple[int, Sequence[int]]]]:
    """A step's groups, dealt to engines in turn as `cluster/fleet/sampler.py` deals them."""
    return [[(prompt, lengths) for lengths in batch[slot::engines]] for slot in range(engines)]
