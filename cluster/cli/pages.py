"""Commands that show runs in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.ends import WRONG_INPUT, home, wrong_input

app = typer.Typer()
Runs = Annotated[list[Path], typer.Argument(callback=home, metavar="RUN...", help="Run directories.")]


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
