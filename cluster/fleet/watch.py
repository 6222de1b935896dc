"""Finds actors that are stopped, stuck or out of reach within seconds, whatever they were asked and whoever waits for them."""

import faulthandler
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import ray
import ray.exceptions
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.fleet.calls import LATE, ask, gather
from cluster.fleet.lookout import Lookout, Process
from cluster.fleet.placement import node_id

R = TypeVar("R")
log = logging.getLogger("cohort")
LOOKS = 5
"""In a heartbeat."""
SILENCE = 7
"""Heartbeats without an answer of a node, or of an engine that does not compute either."""
BUSY = 0.05
"""Part of a core that processes which compute use at least."""
END_S = 30.0
"""For the processes of a node to be ended."""


@dataclass(slots=True)
class _Member:
    actor: ActorHandle
    node: str
    pids: list[int]
    pulse: Callable[[], ObjectRef] | None
    """A call that a sound engine answers between two of its steps."""
    names: dict[int, str] = field(default_factory=dict)
    """Of the processes that were seen."""
    bad: dict[int, float] = field(default_factory=dict)
    """Since when they are stopped or gone."""
    asked: ObjectRef | None = None
    quiet: float = 0.0
    """When the engine last answered or computed, and the CPU seconds that it had used by then."""
    used: float = 0.0

    def ill(self, processes: Mapping[int, Process] | None, heartbeat_s: float) -> str:
        """What is wrong with it, or an empty string. `processes`: of its node; None where nothing new is known."""
        if processes is None:
            return ""
        seen, now = {pid: processes[pid] for pid in self.pids if pid in processes}, time.monotonic()
        self.names |= {pid: process.name for pid, process in seen.items()}
        for pid, name in self.names.items():
            state = seen[pid].state if pid in seen else "X"
            if state not in "TtZX":
                self.bad.pop(pid, None)
            elif now - self.bad.setdefault(pid, now) >= heartbeat_s:
                return f"process {pid} ({name}) is {'stopped' if state in 'Tt' else 'gone'} since {now - self.bad[pid]:.0f} s"
        return self._stuck(seen, now, heartbeat_s) if self.pulse else ""

    def _stuck(self, seen: Mapping[int, Process], now: float, heartbeat_s: float) -> str:
        answered = self.asked is None or bool(ray.wait([self.asked], timeout=0)[0])
        used = sum(process.seconds for process in seen.values())
        busy = used - self.used > BUSY * (now - self.quiet) or any(process.state == "D" for process in seen.values())
        if answered and self.pulse:
            self.asked = self.pulse()
        if answered or busy:
            self.used, self.quiet = used, now
        quiet = now - self.quiet
        return f"the engine neither answers nor computes since {quiet:.0f} s" if quiet >= SILENCE * heartbeat_s else ""


class _Node:
    """What is known of the processes of another node than the driver's."""

    def __init__(self, node: str):
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": strategy}
        self.lookout = cast(ActorHandle[Lookout], ray.remote(Lookout).options(**options).remote())
        self._heard = 0.0
        self._asked: ObjectRef | None = None

    def look(self, pids: Sequence[int]) -> dict[int, Process] | None:
        """The newest answer, if one came since the last call."""
        seen = None
        if self._asked and ray.wait([self._asked], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):
                seen, self._heard = ray.get(self._asked, timeout=1), time.monotonic()
            self._asked = None
        self._asked = self._asked or ask(self.lookout, Lookout.look)(pids)
        return seen

    @property
    def silent_s(self) -> float:
        """Since the last answer; 0 before the first one."""
        return time.monotonic() - self._heard if self._heard else 0.0


class Watch:
    """Looks at all processes of a run's actors, a few times in a heartbeat, from a thread. An actor that is ill is ended, so
    that Ray tells at once everyone who waits for it, the learner's ranks in a weight update too."""

    def __init__(self, heartbeat_s: float, stacks: Path):
        """`heartbeat_s`: what is stopped or gone for so long is ill; what only does not answer, `SILENCE` times as long.
        `stacks`: the file for stacks of processes."""
        self._heartbeat_s, self.stacks, self._here = heartbeat_s, stacks, Lookout()
        self._members: dict[str, _Member] = {}
        self._nodes: dict[str, _Node] = {}
        self._verdicts: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def add(self, name: str, actor: ActorHandle, info: Mapping, pulse: Callable[[], ObjectRef] | None = None) -> None:
        """An actor that has started; `info` has its node and processes. What was found of one with its name is forgotten."""
        node = info["node_id"]
        if node != node_id() and node not in self._nodes:
            self._nodes[node] = _Node(node)
        self._verdicts.pop(name, None)
        self._members[name] = _Member(actor, node, [info["pid"], *info.get("pids", ())], pulse)
        if not self._thread.is_alive():
            self._thread.start()

    def why(self, name: str) -> str:
        """What was found of an actor that is ill, or an empty string."""
        return self._verdicts.get(name, "")

    def gather(
        self, role: str, calls: Mapping[int, ObjectRef[R]], deadline_s: float, name: str
    ) -> tuple[dict[int, R], dict[int, str]]:
        """`calls.gather`, with what was found of those that are ill."""
        answers, errors = gather(calls, deadline_s, what=f"{role}: {name}")
        return answers, self.explain(role, errors)

    def explain(self, role: str, errors: Mapping[int, str]) -> dict[int, str]:
        """Errors by slot: of an actor that is ill, what was found."""
        return {slot: self.why(f"{role}-{slot}") or error for slot, error in errors.items()}

    def end(self, name: str, actor: ActorHandle) -> None:
        """End an actor with all of its processes, stopped ones too."""
        ray.kill(actor)
        if member := self._members.pop(name, None):
            if member.node in self._nodes:
                ask(self._nodes[member.node].lookout, Lookout.end)(member.pids)
            else:
                self._here.end(member.pids)

    def testify(self, why: str, names: Sequence[str] | None = None) -> None:
        """Where `why` is that a deadline passed: end these actors, or all, and keep what each process was doing."""
        if LATE not in why:
            return
        wanted: dict[str, dict[str, list[int]]] = {}
        for name in list(self._members) if names is None else names:
            if member := self._members.pop(name, None):
                wanted.setdefault(member.node, {})[name] = member.pids
        away = {n: ask(self._nodes[n].lookout, Lookout.stacks)(pids) for n, pids in wanted.items() if n in self._nodes}
        self.stacks.parent.mkdir(parents=True, exist_ok=True)
        with self.stacks.open("a") as file:
            print(time.ctime(), why, "-- the driver", sep="\n", file=file, flush=True)
            faulthandler.dump_traceback(file)
            file.writelines(self._here.stacks(pids) for node, pids in wanted.items() if node not in self._nodes)
            for answers in gather(dict(enumerate(away.values())), END_S, what="stacks of processes"):
                file.writelines(answers.values())
        log.error("what the processes were doing: %s", self.stacks)

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(END_S)

    def end_all(self) -> None:
        """End every actor with all of its processes."""
        for name, member in list(self._members.items()):
            self.end(name, member.actor)
        # An actor's calls are answered in order.
        gather(
            {i: ask(n.lookout, Lookout.sweep)() for i, n in enumerate(self._nodes.values())}, END_S, what="the end of processes"
        )
        for node in self._nodes.values():
            ray.kill(node.lookout)

    def _run(self) -> None:
        while not self._over.wait(self._heartbeat_s / LOOKS):
            try:
                self._round()
            except Exception as error:  # it must go on
                log.warning("while looking at processes: %r", error)

    def _round(self) -> None:
        members = list(self._members.items())
        for key in {member.node for _, member in members}:
            node, its = self._nodes.get(key), [(name, member) for name, member in members if member.node == key]
            seen = (node or self._here).look([pid for _, member in its for pid in member.pids])
            silent_s = node.silent_s if node else 0.0
            silent = f"its node has not answered for {silent_s:.0f} s" if silent_s >= SILENCE * self._heartbeat_s else ""
            for name, member in its:
                if (why := silent or member.ill(seen, self._heartbeat_s)) and self._members.get(name) is member:
                    log.warning("%s is ended: %s", name, why)
                    self._verdicts[name] = why
                    self.end(name, member.actor)
            if silent:
                del self._nodes[key]
