"""A run as a job: its name, its command and its environment; and how it is followed to its end."""

import math
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config.recipe import ConfigError
from cluster.jobs.endings import ENDED, exit_code
from cluster.jobs.package import Package
from cluster.stopping import GRACE_S, JOB_GRACE_S, LAST_S, RunFailed

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails

    from cluster.jobs.client import Jobs

OUTPUT = "cohort_output"
"""Of a job's metadata: the run's directory."""
WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
MARGIN_S = 5.0
"""Between the last moment at which a stopped run may end and the one at which Ray kills it."""
POLL_S = 2.0
LOST_S = 60.0
"""A server that does not answer for so long is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What Ray is asked to run."""

    command: str
    env: dict[str, str]
    metadata: dict[str, str]


def submission(packed: Package, overrides: Sequence[str], keys: Sequence[str]) -> Submission:
    """Of a recipe, with the variables of these names passed on. Raises ConfigError for one that is not set.

    What was sent is copied beside the run's directory, where every node sees it and a resumed run finds it at the same path.
    """
    problems = [
        f"--env {key}: is not set here; expected the name of a variable that is" for key in keys if key not in os.environ
    ]
    if problems:
        raise ConfigError(problems)
    output, grace_s = packed.config.output, packed.config.cluster.stop_grace_s
    # Without a configured one the run takes as its grace period what Ray waits.
    wait_s = math.ceil(GRACE_S if grace_s is None else grace_s + LAST_S + MARGIN_S)
    beside = shlex.quote(str(output.with_name(f"{output.name}.job")))
    train = shlex.join(["cohort", "train", packed.recipe, "--or-resume", *overrides, f"output={output}"])
    return Submission(
        command=f"mkdir -p {beside} && cp -R . {beside} && cd {beside} && exec {train}",
        env={WAIT: str(wait_s)} | {key: os.environ[key] for key in keys},
        metadata={OUTPUT: str(output)},
    )


def free_name(jobs: Sequence["JobDetails"], name: str, output: Path) -> str:
    """NAME, or NAME-2 and so on: Ray gives none twice. Raises ConfigError where a job runs this directory already."""
    for job in jobs:
        if job.status not in ENDED and (job.metadata or {}).get(OUTPUT) == str(output):
            found = f"job {job.submission_id} runs {output}"
            raise ConfigError([f"{found}; expected `cohort stop {job.submission_id}` first, or another output"])
    taken = {job.submission_id for job in jobs}
    return next(free for free in chain([name], (f"{name}-{i}" for i in count(2))) if free not in taken)


def follow(jobs: "Jobs", job: str, say: Callable[[str], None], until: float = math.inf) -> int:
    """Say what is new in a job's log until it ends; its exit code. Raises RunFailed where that takes longer than `until`, by
    the monotonic clock, or nobody answers any more."""
    from cluster.jobs.client import Unreachable

    shown, heard = 0, time.monotonic()
    while True:
        try:
            known = jobs.info(job)  # before the log: that of a job which has ended is whole
            log = jobs.log(job)
        except Unreachable as error:
            if time.monotonic() > heard + LOST_S:
                raise RunFailed(f"{error}; the job may go on") from error
        else:
            heard = time.monotonic()
            say(log[shown:])
            shown = len(log)
            if (code := exit_code(known.status.value, known.driver_exit_code, log)) is not None:
                return code
        if time.monotonic() > until:
            raise RunFailed(f"job {job} has not ended in time")
        time.sleep(POLL_S)


def stop_wait_s(job: "JobDetails") -> float:
    """How long Ray waits for the end of this job before it kills it, as far as the job itself says."""
    return float(((job.runtime_env or {}).get("env_vars") or {}).get(WAIT, JOB_GRACE_S))
