"""Commands that show runs: in print, as a picture, in a browser."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.ends import FAILED, WRONG_INPUT, home, wrong_input

app = typer.Typer()
Runs = Annotated[list[Path], typer.Argument(callback=home, metavar="RUN...", help="Run directories.")]


@app.command()
def report(
    run: Annotated[Path, typer.Argument(callback=home, metavar="RUN", help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="So many are put into run.html.")] = 50_000,
) -> None:
    """Draw RUN/run.png, write RUN/run.html with every curve and sample, and print the run's summary and the balance of its
    samples; exit code 3 where that does not hold."""
    from rich.console import Console

    from cluster.page.html import write_page
    from cluster.records.balance import read_balance, show
    from cluster.records.metrics import read_jsonl
    from cluster.records.report import plot, read_summary, roles_table, summary_table

    with wrong_input():
        picture, balance = plot(run), read_balance(run)
        write_page([run], run / "run.html", samples)
        if as_json:
            typer.echo(json.dumps(read_summary(run) | ({"ledger": balance.facts()} if balance else {}), indent=1))
        elif (run / "summary.json").is_file():
            Console().print(summary_table(read_summary(run)))
        if not as_json and (roles := roles_table(read_jsonl(run / "metrics.jsonl"))).row_count:
            Console().print(roles)
    if not as_json:
        if balance:
            show(balance)
        typer.echo(f"{run / 'run.html'}\n{picture}")
    if balance and balance.offenders:
        raise typer.Exit(FAILED)


@app.command()
def watch(
    runs: Runs, port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0 takes a free one.")] = 0
) -> None:
    """Serve the page of a run, live or ended, to this machine's browsers, and renew it as the run goes on. Ctrl-C ends it."""
    from cluster.page.server import Server

    with wrong_input():
        try:
            server = Server(runs, port)
        except OSError as error:
            typer.echo(f"error: --port {port}: {error.strerror}", err=True)
            raise typer.Exit(WRONG_INPUT) from error
    typer.echo(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("ended")
    finally:
        server.server_close()


@app.command()
def compare(
    runs: Runs,
    out: Annotated[Path, typer.Option(callback=home, metavar="FILE", help="Where the page is written.")] = Path("compare.html"),
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="So many of each run are put into the page.")] = 10_000,
) -> None:
    """Put runs side by side: a table, and a page in which runs that differ in their seed only are one curve with its spread."""
    from rich.console import Console
    from rich.table import Table

    from cluster.page.html import write_page

    with wrong_input():
        if len(runs) < 2:
            raise ValueError(f"found {len(runs)} run, expected at least two")
        head = write_page(runs, out, samples)
    names = [run["name"] for run in head["runs"]]
    for title, rows in (("", head["table"]), ("where the configurations differ", head["differences"])):
        if rows:
            table = Table(title, *names, box=None)
            for row in rows:
                table.add_row(*row)
            Console().print(table, markup=False)
    typer.echo(out)
