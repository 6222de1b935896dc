"""What the files of deploy/ say, as the programs that read them would."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import typer
import yaml

from cluster.cli import main as cli

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


def manifest(name):
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def parsed(words: list[str], command) -> dict:
    """The arguments of a command line as its program reads them; nothing is run. Raises what click, or typer's copy of it, does
    where it is wrong."""
    name = ""
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"{name}: no such command"
        command = command.commands[name]
    return command.make_context(name, list(words)).params


def cohort(words: list[str]) -> dict:
    """The arguments of a `cohort` command."""
    return parsed(words, typer.main.get_command(cli.app))


def ray(words: list[str]) -> dict:
    """The arguments of a `ray` command."""
    from ray.scripts.scripts import cli

    return parsed(words, cli)


def commands(text: str, program: str) -> list[list[str]]:
    """The command lines of a program in a page's code blocks, or in a script: their words behind its name."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    pattern = rf"^\s*(?:.*\s(?:--|cohort:\w+)\s+)?(?:[A-Z_]+=\S+ )*(?:\S+/)?{program} ([a-z].*?)(?:\s&|\s+#.*)?$"
    return [shlex.split(found[1]) for line in lines if (found := re.match(pattern, line))]


def blocks(page: str) -> str:
    """The code blocks of a page, one after the other."""
    return "\n".join(re.findall(r"^```\w*\n(.*?)^```", page, re.DOTALL | re.MULTILINE))


def shellcheck(script: str, shell: str = "bash") -> str:
    """What shellcheck has to say of a script."""
    asked = [SHELLCHECK, f"--shell={shell}", "--severity=style", "-"]
    return subprocess.run(asked, input=script, capture_output=True, text=True, timeout=60).stdout
