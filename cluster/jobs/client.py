"""Ray's jobs over HTTP: every request has a deadline, and what fails is said in a line."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ray._private.authentication import authentication_token_setup as authentication
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from cluster.config.recipe import ConfigError
from rollout.environment import environment

ANSWER_S = 30.0
"""For the server to accept a connection, and between two parts of what it sends."""
AGENT_S, POLL_S, NO_AGENT = 90.0, 1.0, "No available agent"
"""A cluster that has just begun answers before it takes jobs: so long it is asked again, so often, while it says so."""
for _name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # they tell of every package


class _Client(JobSubmissionClient):
    def _do_request(self, method, endpoint, **how):
        return super()._do_request(method, endpoint, timeout=ANSWER_S, **how)


class Unreachable(ConfigError):
    """Nobody answers at the address, perhaps only now."""


class Jobs:
    """The jobs of the cluster whose dashboard is at an address. All methods raise ConfigError, in words."""

    def __init__(self, address: str):
        self.address = address
        if not address.startswith(("http://", "https://")):
            raise ConfigError([f"--address: found {address}; expected that of the dashboard, as in http://head:8265"])
        with self._in_words(), environment({"RAY_API_SERVER_ADDRESS": address}):  # Ray prefers RAY_ADDRESS to what it is given
            authentication.ensure_token_if_auth_enabled(create_token_if_missing=False)
            self._client = _Client(address)

    def submit(self, job: str, command: str, folder: Path, env: Mapping[str, str], metadata: dict[str, str]) -> None:
        """Start a job whose command begins in a copy of the folder."""
        known = {one.submission_id for one in self.all()}
        if job in known:
            raise ConfigError([f"job {job}: this name is taken, and Ray gives none twice; expected another --job"])
        until, runtime_env = time.monotonic() + AGENT_S, {"working_dir": str(folder), "env_vars": dict(env)}
        what = {"entrypoint": command, "submission_id": job, "runtime_env": runtime_env, "metadata": metadata}
        while True:
            try:
                with self._in_words(job):
                    self._client.submit_job(**what)
                return
            except ConfigError as error:
                if NO_AGENT not in str(error) or time.monotonic() > until:
                    raise
            time.sleep(POLL_S)

    def all(self) -> list[JobDetails]:
        """Those that were submitted, in the order of their beginning."""
        with self._in_words():
            found = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.start_time or 0)

    def info(self, job: str) -> JobDetails:
        with self._in_words(job):
            return self._client.get_job_info(job)

    def log(self, job: str) -> str:
        """All of it; empty where there is none yet."""
        with self._in_words(job):
            return self._client.get_job_logs(job) or ""

    def stop(self, job: str) -> None:
        """Ask for its end."""
        with self._in_words(job):
            self._client.stop_job(job)

    @contextmanager
    def _in_words(self, job: str = "") -> Iterator[None]:
        try:
            yield
        except AuthenticationError:
            found = f"the cluster at {self.address} wants a token, and this process has none or another"
            names = "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
            raise ConfigError([f"{found}; expected {names} as where the cluster was begun"]) from None
        except (OSError, KeyError) as error:
            why = f"({type(error).__name__}; each request waits {ANSWER_S:g} s)"
            raise Unreachable([f"--address: found {self.address}, where no Ray cluster answers {why}"]) from error
        except RuntimeError as error:
            if job and "404" in str(error):
                raise ConfigError([f"job {job}: {self.address} knows none of this name"]) from error
            raise ConfigError([f"{self.address} refuses: {str(error).strip().splitlines()[0]}"]) from error
