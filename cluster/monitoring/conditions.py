"""When alarms are raised, as the driver looks for it after every step and as Prometheus does between its scrapes.

A condition reads means over `SPAN` steps of a stage. Prometheus knows no steps, and takes minutes for them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar, Protocol

from cluster.records.catalogue import exported

Rows = Sequence[Mapping[str, object]]
"""Of metrics.jsonl, of one stage."""
SPAN = 10
"""Steps, or minutes, that a mean is over."""
BACK = 5 * SPAN
"""How far back that lies which a trend is compared with."""
KEPT = BACK + SPAN
"""Rows that a condition reads at most."""
NEARLY = 0.95
"""Of a limit."""


def mean(rows: Rows, name: str) -> float | None:
    """Of a metric over the rows that have it."""
    found = [x for row in rows if isinstance(x := row.get(name), int | float) and math.isfinite(x)]
    return fmean(found) if found else None


class Condition(Protocol):
    """When an alarm is raised."""

    relation: ClassVar[str]
    """Of the number that raises it to the one that it is compared with."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The first is what the alarm tells of; of several that are added up, all."""
        ...

    def found(self, rows: Rows) -> tuple[float, float] | None:
        """The number that raises it and the one that it is compared with; None while all is well."""
        ...

    def promql(self) -> str:
        """An expression that has a series for every run whose alarm is raised."""
        ...

    def words(self) -> str:
        """The condition, for people."""
        ...


def over_time(name: str, back: int = 0) -> str:
    return f"avg_over_time(ray_{exported(name)}[{SPAN}m]{f' offset {back}m' if back else ''})"


def compared(rows: Rows, name: str) -> tuple[float, float] | None:
    """A metric's newest mean, and the one that lies `BACK` steps before it or, where the stage is younger, at its beginning."""
    if len(rows) < 2 * SPAN:
        return None
    now, before = mean(rows[-SPAN:], name), mean(rows[-KEPT:][:SPAN], name)
    return None if now is None or before is None else (now, before)


SAME_STAGE = f"unless on (run, output) changes(ray_{exported('stage_number')}[{KEPT}m]) > 0"
"""Stages differ too much to be compared."""


@dataclass(frozen=True)
class Above:
    """The sum of metrics is above a bound."""

    metrics: tuple[str, ...]
    bound: float
    relation: ClassVar[str] = "above"

    def found(self, rows: Rows) -> tuple[float, float] | None:
        means = [mean(rows[-SPAN:], name) for name in self.metrics]
        known = [x for x in means if x is not None]
        return (sum(known), self.bound) if len(rows) >= SPAN and len(known) == len(means) and sum(known) > self.bound else None

    def promql(self) -> str:
        return f"{' + '.join(map(over_time, self.metrics))} > {self.bound:g}"

    def words(self) -> str:
        return f"{' + '.join(f'`{name}`' for name in self.metrics)} above {self.bound:g}"


@dataclass(frozen=True)
class Below:
    """A metric is below a bound, steps at which it is 0 left out: in these nothing was asked for."""

    metric: str
    bound: float
    relation: ClassVar[str] = "below"

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def found(self, rows: Rows) -> tuple[float, float] | None:
        now = mean([row for row in rows[-SPAN:] if row.get(self.metric)], self.metric)
        return (now, self.bound) if len(rows) >= SPAN and now is not None and now < self.bound else None

    def promql(self) -> str:
        return f"avg_over_time((ray_{exported(self.metric)} > 0)[{SPAN}m:30s]) < {self.bound:g}"

    def words(self) -> str:
        return f"`{self.metric}` below {self.bound:g}, steps left out that ask for nothing"


@dataclass(frozen=True)
class Full:
    """A metric is at the limit that another one tells, where that is `least` or more."""

    metric: str
    limit: str
    least: float
    relation: ClassVar[str] = "at its limit of"

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric, self.limit)

    def found(self, rows: Rows) -> tuple[float, float] | None:
        now, limit = mean(rows[-SPAN:], self.metric), mean(rows[-SPAN:], self.limit)
        if len(rows) < SPAN or now is None or limit is None or limit < self.least or now < NEARLY * limit:
            return None
        return now, limit

    def promql(self) -> str:
        limit = over_time(self.limit)
        return f"{over_time(self.metric)} >= {NEARLY:g} * {limit} and {limit} >= {self.least:g}"

    def words(self) -> str:
        return f"`{self.metric}` at `{self.limit}`, where that is {self.least:g} or more"


@dataclass(frozen=True)
class Grown:
    """A metric is `times` what it was, and above a bound."""

    metric: str
    times: float
    bound: float
    relation: ClassVar[str] = "up from"

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def found(self, rows: Rows) -> tuple[float, float] | None:
        pair = compared(rows, self.metric)
        return pair if pair and pair[0] > self.bound and pair[0] > self.times * pair[1] else None

    def promql(self) -> str:
        now = over_time(self.metric)
        return f"({now} > {self.times:g} * {over_time(self.metric, BACK)} and {now} > {self.bound:g}) {SAME_STAGE}"

    def words(self) -> str:
        return f"`{self.metric}` more than {self.times:g} times what it was, and above {self.bound:g}"


@dataclass(frozen=True)
class Shrunk:
    """A metric is less than this share of what it was, in stages that measure another one too."""

    metric: str
    share: float
    where: str
    relation: ClassVar[str] = "down from"

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def found(self, rows: Rows) -> tuple[float, float] | None:
        pair = compared([row for row in rows if row.get(self.where) is not None], self.metric)
        return pair if pair and pair[0] < self.share * pair[1] else None

    def promql(self) -> str:
        fallen = f"{over_time(self.metric)} < {self.share:g} * {over_time(self.metric, BACK)}"
        return f"({fallen} and {over_time(self.where)}) {SAME_STAGE}"

    def words(self) -> str:
        return f"`{self.metric}` below {self.share:g} of what it was, in stages that measure `{self.where}`"


@dataclass(frozen=True)
class Apart:
    """A metric has fallen while another one has risen, each by so much."""

    falls: str
    rises: str
    by: float
    relation: ClassVar[str] = "down from"

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.falls, self.rises)

    def found(self, rows: Rows) -> tuple[float, float] | None:
        down, up = compared(rows, self.falls), compared(rows, self.rises)
        return down if up and down and up[0] - up[1] > self.by and down[1] - down[0] > self.by else None

    def promql(self) -> str:
        down, up = (f"{over_time(name)} - {over_time(name, BACK)}" for name in self.metrics)
        return f"({down} < -{self.by:g} and {up} > {self.by:g}) {SAME_STAGE}"

    def words(self) -> str:
        return f"`{self.rises}` up and `{self.falls}` down by more than {self.by:g}"
