"""What every configuration is made of: sections without unknown keys, absolute paths, and refusals that name their keys."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """Frozen, and unknown keys are errors: a key that nothing reads cannot be written."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def refusal(problems: list[tuple[tuple[str | int, ...], str]]) -> PydanticCustomError:
    """A validation error of several problems, each at a key of its own below the model that raises it."""
    text = "; ".join(f"{'.'.join(map(str, loc))}: {why}" for loc, why in problems)
    return PydanticCustomError("several", "{text}", {"text": text, "problems": problems})


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the choice that looks most like the name, or nothing."""
    plain = {choice.lower().replace("-", "_"): choice for choice in choices}
    match = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=1, cutoff=0.6)
    return f"; did you mean '{plain[match[0]]}'?" if match else ""


def expanded(path: Path) -> Path:
    """`~` expanded. Raises ValueError for the home of a user who is not known."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error


def absolute(path: Path) -> Path:
    """`~` expanded, and relative to the current directory. Raises ValueError for the home of a user who is not known."""
    return Path(os.path.abspath(expanded(path)))


AbsolutePath = Annotated[Path, AfterValidator(absolute)]
"""Every path of a configuration: what it names must not depend on the directory that a resumed run or an actor is in."""


def python_function(value: str) -> str:
    """`file.py:name` with the file's whole path. Raises ValueError where it is not that, or there is no such file."""
    file, _, name = value.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ValueError(f"found {value!r}; expected a file and a function in it, such as my_rewards.py:score")
    path = absolute(Path(file))
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the Python file of the function {name}")
    return f"{path}:{name}"
