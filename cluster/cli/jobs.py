"""`cohort submit`, `status`, `logs` and `stop`: runs as jobs of a Ray cluster; `cohort runs`: what became of runs."""

import json
import re
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.ends import home, perform, wrong_input
from cluster.stopping import STOPPED, RunFailed, Stop, Stopped

if TYPE_CHECKING:
    from cluster.jobs.client import Jobs
    from cluster.run.listing import RunState

app = typer.Typer()
LOCAL = "http://127.0.0.1:8265"
SLACK_S = 60.0
"""For a job's end to be known, after Ray has waited for it."""
LAST_WORDS = re.compile(r"^stopped by a signal.*$", re.MULTILINE)
Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", metavar="URL", help="The cluster's dashboard, as http://head:8265.")
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="As `cohort submit` named it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


@app.command()
def submit(
    recipe: Annotated[Path, typer.Argument(callback=home, metavar="RECIPE", help="A YAML recipe; see deploy/recipes.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As for `cohort train`.")] = None,
    address: Address = LOCAL,
    name: Annotated[str | None, typer.Option("--job", metavar="NAME", help="Else the run's name, NAME-2 and so on.")] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="KEY", help="A variable to pass on; no other is.")] = None,
    include: Annotated[list[Path] | None, typer.Option(metavar="PATH", help="To take along beside what is named.")] = None,
    limit_mb: Annotated[float, typer.Option(min=0, help="More than so much is not sent.")] = 100.0,
    follow: Annotated[bool, typer.Option("--follow", help="Show the log, and end as the job ends.")] = False,
) -> None:
    """Run a recipe as a job of a cluster; where `output` holds the run already, go on with it."""

    def work(stop: Stop) -> dict:
        from cluster.jobs.package import package
        from cluster.jobs.submission import free_name, submission

        packed = package(recipe, overrides or [], include or [], limit_mb)
        asked, output = submission(packed, overrides or [], env or []), packed.config.output
        jobs = _jobs(address)
        job = name or free_name(jobs.all(), packed.config.name, output)
        for path, size in packed.sizes.items():
            typer.echo(f"{size / 1e6:10.3f} MB  {path}")
        typer.echo(f"{packed.bytes / 1e6:10.3f} MB  in all; only {', '.join(sorted(asked.env))} of the environment")
        with tempfile.TemporaryDirectory(prefix="cohort_job_") as folder:
            packed.write(Path(folder), recipe)
            jobs.submit(job, asked.command, Path(folder), asked.env, asked.metadata)
        typer.echo(f"job {job} runs {output}")
        return {"code": _followed(jobs, job) if follow else 0}

    perform(work, _leave)


@app.command()
def status(job: Job, address: Address = LOCAL, as_json: AsJson = False) -> None:
    """How a job is: its state, its run's, and of one that failed its first error."""

    def work(stop: Stop) -> dict:
        from cluster.jobs.endings import exit_code, first_error
        from cluster.jobs.submission import OUTPUT
        from cluster.run.listing import state_of

        jobs = _jobs(address)
        found, log = jobs.info(job), jobs.log(job)
        output = (found.metadata or {}).get(OUTPUT, "")
        run = state_of(Path(output)) if output and (Path(output) / "config.yaml").is_file() else None
        return {
            "job": job,
            "status": found.status.value,
            "exit_code": exit_code(found.status.value, found.driver_exit_code, log),
            "error": first_error(log, found.message or "") if found.status == "FAILED" else None,
            "last": ([line for line in log.splitlines() if line.strip()] or [found.message])[-1],
            "output": output,
            "run": asdict(run) if run else None,
        }

    def show(found: dict) -> None:
        code = "" if found["exit_code"] is None else f", exit code {found['exit_code']}"
        typer.echo(f"job {job}: {found['status']}{code}")
        run = found["run"]
        if run:
            of = f" of {run['steps']}" if run["steps"] else ""
            typer.echo(f"run {run['directory']}: {run['state']}, step {run['step']}{of}, written {_time(run['written'])}")
        typer.echo(found["error"] or found["last"])

    perform(work, lambda found: typer.echo(json.dumps(found, indent=1)) if as_json else show(found))


@app.command()
def logs(
    job: Job,
    address: Address = LOCAL,
    follow: Annotated[bool, typer.Option("--follow", help="Go on to the job's end, and end as the job ends.")] = False,
) -> None:
    """Print what a job's driver says."""

    def work(stop: Stop) -> dict:
        jobs = _jobs(address)
        if follow:
            return {"code": _followed(jobs, job)}
        typer.echo(jobs.log(job), nl=False)
        return {"code": 0}

    perform(work, _leave)


@app.command()
def stop(
    job: Job,
    address: Address = LOCAL,
    wait: Annotated[float | None, typer.Option(metavar="SECONDS", help="For its end; else as long as Ray waits.")] = None,
) -> None:
    """Stop a job: its run saves, and ends with exit code 4. Exit code 3 where it was killed before."""

    def work(stop: Stop) -> dict:
        from cluster.jobs.endings import ENDED
        from cluster.jobs.submission import follow, stop_wait_s

        jobs = _jobs(address)
        found = jobs.info(job)
        if found.status in ENDED:
            return {"said": f"job {job} has ended already: {found.status.value}"}
        jobs.stop(job)
        waited = stop_wait_s(found) + SLACK_S if wait is None else wait
        code = follow(jobs, job, lambda text: None, time.monotonic() + waited)
        words = LAST_WORDS.findall(jobs.log(job))
        if code and (code != STOPPED or not words):
            raise RunFailed(f"job {job} was killed before it had saved (exit code {code}); its newest checkpoint stands")
        return {"said": words[-1] if code else f"job {job} had ended before it was stopped"}

    perform(work, lambda found: typer.echo(found["said"]))


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(callback=home, metavar="[DIR]", help="Of run directories.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs of a directory: state, step, held-out accuracy, when last written."""
    from cluster.run.listing import runs

    with wrong_input():
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such directory; expected one that holds runs")
        found = runs(folder)
    if as_json:
        typer.echo(json.dumps([asdict(run) for run in found], indent=1))
        return
    rows = [("run", "state", "step", "accuracy", "last written", "")] + [_row(run) for run in found]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        typer.echo("  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[-1]]).rstrip())


def _row(run: "RunState") -> tuple[str, ...]:
    accuracy = "-" if run.accuracy is None else f"{run.accuracy:.3f}"
    steps = f"{run.step}/{run.steps}" if run.steps else "-"
    return Path(run.directory).name, run.state, steps, accuracy, _time(run.written), run.why


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00") + " UTC"


def _jobs(address: str) -> "Jobs":
    from cluster.jobs.client import Jobs

    return Jobs(address)


def _followed(jobs: "Jobs", job: str) -> int:
    from cluster.jobs.submission import follow

    try:
        return follow(jobs, job, lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        raise Stopped(f"not followed any further; `cohort stop {job}` stops it") from None


def _leave(found: dict) -> None:
    if found["code"]:
        raise typer.Exit(found["code"])
