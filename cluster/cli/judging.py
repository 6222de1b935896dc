"""The commands that judge answers: `score` needs no GPU, Ray cluster or model; `evaluate` samples a model's."""

import json
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from cluster.cli.ends import FAILED, home, perform, wrong_input
from cluster.stopping import Stop

app = typer.Typer()


@app.command()
@wrong_input()
def score(
    file: Annotated[Path, typer.Argument(callback=home, metavar="FILE", help="Stored responses: .jsonl or .parquet.")],
    question: Annotated[str, typer.Option(help="Column of the question, or a template: '{Body} {Question}'.")] = "question",
    response: Annotated[str, typer.Option(help="Column of the response, or a field in one, a[b]: text, or list.")] = "response",
    gold: Annotated[str, typer.Option(help="Column of the reference answer, or a template such as '{Answer:g}'.")] = "gold",
    score_field: Annotated[str | None, typer.Option(help="Column of a reward model's scores, for rm@k.")] = None,
    answer_format: Annotated[str, typer.Option(help="auto, hash, boxed, answer-is or last-number.")] = "auto",
    reading: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="As reward.reading in a recipe, e.g. 'end_marks=[<eoa>]'. May be repeated."),
    ] = None,
    k: Annotated[str | None, typer.Option("--k", help="As in 1,8,64; by default 1, 2, 4, ...")] = None,
    out: Annotated[Path | None, typer.Option(callback=home, help="Write jsonl rows of lists `scores`, `extracted`.")] = None,
    judges: Annotated[int, typer.Option(min=1, help="Processes that judge.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Judge stored responses: accuracy with its interval, pass@k, maj@k and rm@k."""
    from reward.config import AnswerFormat, RewardConfig
    from reward.judging.judges import rule_pool
    from reward.judging.stored import judge_stored, measures, read

    _check_choice("--answer-format", answer_format, get_args(AnswerFormat))
    ks, read_as = numbers(k) if k else None, _reading(reading or [])
    rows = read(file, question=question, response=response, gold=gold, score=score_field)
    config = RewardConfig(answer_format=cast(AnswerFormat, answer_format), reading=read_as, judges=judges)
    with rule_pool(config) as pool, _progress(rows) as done:
        judged = judge_stored(rows, pool, config, done)
    if out is not None:
        from cluster.records.samples import write_rows

        write_rows(out, (_record(row, found) for row, found in zip(rows, judged, strict=True)))
    found: dict = {"file": str(file), "answer_format": answer_format} | measures(rows, judged, ks)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found)
    _warn(rows, judged)
    if missing := sorted(set(ks or ()) - set(found["pass_at_k"])):
        typer.echo(f"warning: no question has as many responses as --k {', '.join(map(str, missing))}", err=True)
    if (failed := found["error"] + found["killed"]) > config.max_unscored_share * found["responses"]:
        typer.echo(f"error: the judge failed on {failed} of {found['responses']} responses: the figures say nothing", err=True)
        raise typer.Exit(FAILED)


@app.command()
@wrong_input()
def evaluate(
    model: Annotated[Path, typer.Argument(callback=home, metavar="MODEL", help="A Hugging Face model directory.")],
    benchmark: Annotated[str, typer.Option(help="gsm8k, math, mgsm-zh or cmath.")],
    data: Annotated[Path, typer.Option(callback=home, metavar="FILE", help="The benchmark's questions: .jsonl or .parquet.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As in rollout.workers=2 or rollout.dtype=bfloat16.")
    ] = None,
    k: Annotated[str, typer.Option("--k", help="As in 1,8,64; as many outputs are sampled as the largest.")] = "1",
    temperature: Annotated[float | None, typer.Option(help="By default 0 (greedy) for one output, else 0.7.")] = None,
    mode: Annotated[str, typer.Option(help="cot: chain of thought; tool: with programs.")] = "cot",
    question: Annotated[str | None, typer.Option(help="Template for the question, where the file's columns differ.")] = None,
    gold: Annotated[str | None, typer.Option(help="Template for the reference answer.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Only the first of the questions.")] = None,
    out: Annotated[
        Path | None, typer.Option(callback=home, help="By default runs/evaluate-BENCHMARK-MODEL; goes on where it stopped.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Sample a model's outputs on a benchmark and judge them: accuracy with its interval, Maj@K, Pass@K."""
    from rollout.data.benchmarks import BENCHMARKS, Mode

    _check_choice("--benchmark", benchmark, BENCHMARKS)
    _check_choice("--mode", mode, ("cot", "tool"))
    ks, asked = numbers(k), BENCHMARKS[benchmark]
    if temperature == 0 and max(ks) > 1:
        raise ValueError(f"--temperature 0 gives one output, found --k {k}; expected a temperature above 0")
    if temperature is None:
        temperature = 0.7 if max(ks) > 1 else 0.0
    source = {"file": str(data), "question": question or asked.question, "answer": gold or asked.answer, "rows": rows}
    settings = {
        "name": f"evaluate-{benchmark}",
        "output": str(out or Path("runs") / f"evaluate-{benchmark}-{model.name}"),
        "model": {"path": str(model)},
        "data": {"questions": source, "prompt": {"suffix": asked.instruction[cast(Mode, mode)]}, "max_prompt_tokens": 1024},
        "rollout": {"max_new_tokens": 1024} | ({"tools": {}} if mode == "tool" else {}),
        "reward": {"answer_format": "auto"},
        "evaluation": {"samples_per_question": max(ks), "temperature": temperature},
        "learner": {"ranks": 0},
        "stages": [],
    }
    config = _loaded(settings, overrides or [])

    def work(stop: Stop) -> dict:
        from cluster.run.benchmark_run import evaluate_benchmark

        return evaluate_benchmark(config, benchmark, ks, stop)

    perform(work, lambda found: typer.echo(json.dumps(found)) if as_json else _show_benchmark(found))


def _loaded(settings: dict, overrides: list[str]):
    """The configuration of these settings with overrides, checked as a recipe's."""
    from cluster.config.recipe import dump
    from cluster.config.run_config import load

    return load(Path("evaluate.yaml"), overrides, dump(settings))


def _show_benchmark(found: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    _show(found)
    for name, parts in found["breakdown"].items():
        table = Table(name.replace("_", " "), "questions", "accuracy", box=None)
        for value, part in parts.items():
            table.add_row(value, str(part["questions"]), _accuracy(part))
        Console().print(table)


def _accuracy(found: dict) -> str:
    interval = found["accuracy_interval"]
    spread = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return "-" if found["accuracy"] is None else f"{found['accuracy']:.3f}{spread}"


def _reading(overrides: list[str]):
    """The defaults of `reward.reading` with overrides. Raises ConfigError."""
    from pydantic import ValidationError

    from cluster.config.recipe import ConfigError, Recipe
    from reward.config import Reading

    recipe = Recipe(Path("reward.reading"), "{}")
    for text in overrides:
        recipe.override(text, Reading)
    try:
        found = Reading.model_validate_json(json.dumps(recipe.data), strict=True)
    except ValidationError as error:
        raise ConfigError(recipe.problems + recipe.explain(error, Reading)) from error
    if recipe.problems:
        raise ConfigError(recipe.problems)
    return found


def numbers(text: str) -> list[int]:
    """1,8,64 as numbers. Raises ValueError."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--k: found {text!r}, expected positive numbers such as 1,8,64")
    return sorted({int(part) for part in parts})


def _check_choice(option: str, found: str, choices: Iterable[str]) -> None:
    from cluster.config.explain import nearest

    if found not in choices:
        raise ValueError(f"{option}: found {found!r}, expected one of {', '.join(choices)}{nearest(found, choices)}")


@contextmanager
def _progress(rows):
    """A bar on a terminal; told how many responses are done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("judging", total=sum(len(row.responses) for row in rows))
        yield lambda count: progress.advance(task, count)


def _record(row, found) -> dict:
    return {
        "question": row.question,
        "gold": row.gold,
        "scores": [None if j.correct is None else int(j.correct) for j in found],
        "extracted": [j.extracted for j in found],
        "reasons": [j.reason for j in found],
    }


def _show(found: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    from reward.statistics.figures import WITHOUT

    table = Table("", "", box=None, show_header=False)
    for name in ("rows", "questions", "responses"):
        if name in found:
            table.add_row(name, str(found[name]))
    for name in WITHOUT:
        if found[name]:
            table.add_row(name, f"{found[name]}, {'left out' if name == 'unscorable' else 'count as wrong'}")
    table.add_row("accuracy", _accuracy(found))
    for name in ("pass", "maj", "rm"):
        for k, value in found[f"{name}_at_k"].items():
            table.add_row(f"{name}@{k}", f"{value:.3f}")
    Console().print(table)


def _warn(rows, judged) -> None:
    """Responses without a score, each reason once, with where it is first."""
    reasons: dict[str, list[str]] = {}
    for row, found in zip(rows, judged, strict=True):
        for one in found:
            if one.correct is None:
                reasons.setdefault(one.reason, []).append(row.where)
    for reason, found in list(reasons.items())[:5]:
        typer.echo(f"warning: {len(found)} without a score, the first at {found[0]}: {reason}", err=True)
    if len(reasons) > 5:
        typer.echo(f"warning: and {len(reasons) - 5} more reasons", err=True)
