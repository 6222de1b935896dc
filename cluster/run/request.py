"""`cohort scale`: a request for other numbers of workers, left in the run's directory for its driver, and what comes of it.

The driver takes it between two steps (cluster/run/scaling.py), and answers in the ledger; so the command works wherever the
directory is seen.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from cluster.config.run_config import ConfigError, RunConfig
from cluster.records.ledger import scalings
from cluster.records.samples import write_text
from cluster.run.directory import finished, in_use, run_config
from cluster.stopping import RunFailed, Stopped

log = logging.getLogger("cohort")
NAME = "scale.json"
_WANTED = TypeAdapter(dict[Literal["rollout", "reward"], int])
POLL_S = 0.5


def scaled(config: RunConfig, wanted: Mapping[str, int]) -> RunConfig:
    """The configuration with these numbers of workers, by role."""
    parts = {role: getattr(config, role).model_copy(update={"workers": count}) for role, count in wanted.items()}
    return config.model_copy(update=parts)


def refusals(config: RunConfig, wanted: Mapping[str, int]) -> list[str]:
    """Why a run cannot have these numbers of workers, as far as its configuration says."""
    from cluster.fleet.bundles import shares_gpus

    out = [f"{role}.workers: found {count}; expected at least 1" for role, count in wanted.items() if count < 1]
    if "rollout" in wanted and shares_gpus(config):
        why = "engines that share GPUs with the learner's ranks (rollout.sleep, or transport ipc) are as many as these"
        out.append(f"rollout.workers: {why}; expected a run whose engines have their own")
    return out


def taken(run_dir: Path) -> dict[str, int]:
    """The request that lies in a run's directory, taken away from there: numbers of workers by role."""
    mine = run_dir / f"{NAME}.taken"
    try:
        (run_dir / NAME).rename(mine)  # another may come at any time
        wanted = _read(mine)
        mine.unlink()
        return wanted
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        log.warning("%s is left aside: %s", run_dir / NAME, error)
        return {}


def request(run_dir: Path, wanted: Mapping[str, int], wait_s: float, say: Callable[[str], None]) -> str:
    """Ask a live run for these numbers of workers, and wait until it has them; what it has then.

    Raises ConfigError where it cannot be asked or refuses, RunFailed where it does not come to it.
    """
    config = run_config(run_dir)
    if not config.stages:
        raise ConfigError([f"{run_dir} is an evaluation; expected a run"])
    if finished(run_dir, config) is not None:
        raise ConfigError([f"{run_dir} is finished; expected a run that goes on"])
    if problems := refusals(config, wanted):
        raise ConfigError(problems)
    if not in_use(run_dir):
        again = " ".join(f"{role}.workers={count}" for role, count in wanted.items())
        raise ConfigError([f"{run_dir}: nobody runs it now; `cohort resume {run_dir} {again}` goes on with as many"])
    ledger = run_dir / "ledger.jsonl"
    start = ledger.stat().st_size if ledger.exists() else 0
    write_text(run_dir / NAME, json.dumps(_waiting(run_dir) | dict(wanted)))
    say(f"asked for {_counted(wanted)}; the run takes it up when its step ends")
    if wait_s:
        try:
            _follow(run_dir, wanted, start, wait_s, say)
        except KeyboardInterrupt:
            raise Stopped("stopped by a signal; the request stands, and the run goes on with it") from None
    config = run_config(run_dir)
    return f"{run_dir}: {_counted({'rollout': config.rollout.workers, 'reward': config.reward.workers})}"


def _follow(run_dir: Path, wanted: Mapping[str, int], start: int, wait_s: float, say: Callable[[str], None]) -> None:
    """Until the ledger says that the run has these numbers. A line about another number belongs to the request before, or, once
    ours is taken up, to a later one."""
    left, taken_up, until = dict(wanted), set(), time.monotonic() + wait_s
    while left:
        alive = in_use(run_dir)
        for end, line in scalings(run_dir / "ledger.jsonl", start):
            start, role, count = end, line["role"], line["wanted"]
            if count != left.get(role):
                if role in taken_up and role in left:
                    raise RunFailed(f"{role} workers: a later request asks for {count}")
                continue
            if "why" in line:
                error = f"{role} workers: {line['to']}, not {count}: {line['why']}"
                raise RunFailed(error) if role in taken_up else ConfigError([error])
            taken_up.add(role)
            still = f", {count} asked for" if line["to"] != count else ""
            say(f"after step {line['step']}: {_counted({role: line['to']})}{still}")
            if not still:
                del left[role]
        if left and not alive:
            if _waiting(run_dir):
                (run_dir / NAME).unlink(missing_ok=True)
            raise RunFailed(f"the run ended before it had {_counted(left)}")
        if left and time.monotonic() > until:
            stage = "is carried out" if taken_up >= left.keys() else "is not taken up yet: the step under way is not over"
            raise RunFailed(f"not within {wait_s:g} s: the request for {_counted(left)} {stage}; it stands")
        if left:
            time.sleep(POLL_S)


def _waiting(run_dir: Path) -> dict[str, int]:
    """The request that the driver has not taken yet."""
    try:
        return _read(run_dir / NAME)
    except (OSError, ValidationError):
        return {}


def _read(path: Path) -> dict[str, int]:
    return {str(role): count for role, count in _WANTED.validate_json(path.read_bytes()).items()}


def _counted(wanted: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {role} worker{'s' * (count != 1)}" for role, count in wanted.items())
