"""How every command of `cohort` ends: its exit code and what it says; and the paths that it is given."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from cluster.stopping import STOPPED, RunFailed, Stop, Stopped

WRONG_INPUT, FAILED = 2, 3


def home(value: Path | list[Path] | None) -> Path | list[Path] | None:
    """Paths with `~` expanded, which a shell does only where one begins a word: not in `--out=~/x`."""
    from rollout.strict import expanded

    with wrong_input():
        return [expanded(path) for path in value] if isinstance(value, list) else value and expanded(value)


@contextmanager
def wrong_input() -> Iterator[None]:
    """A ValueError in words, and its exit code."""
    try:
        yield
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(WRONG_INPUT) from error


def perform(work: Callable[[Stop], dict], show: Callable[[dict], None] | None = None) -> None:
    """Run to the end and show what came of it, a summary by default; every way to end has its exit code."""
    from rich.console import Console

    from cluster.config.recipe import ConfigError

    with Stop() as stop:
        try:
            summary = work(stop)
        except typer.Exit:
            raise
        except ConfigError as error:
            code, message = WRONG_INPUT, f"error: {error}"
        except Stopped as error:
            code, message = STOPPED, f"{error}"
        except RunFailed as error:
            code, message = FAILED, f"the run failed: {error}"
        except (Exception, KeyboardInterrupt) as error:
            stopped = stop.asked and isinstance(error, KeyboardInterrupt)
            code, message = (STOPPED, "stopped by a signal; nothing was begun") if stopped else (FAILED, traceback.format_exc())
        else:
            code = 0
    if code:
        typer.echo(message, err=True)
        raise typer.Exit(code)
    if show is not None:
        show(summary)
    else:
        from cluster.records.report import summary_table

        Console().print(summary_table(summary))
