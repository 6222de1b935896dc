"""Modes of files that libraries write."""

import os
from pathlib import Path


def as_umask_says(directory: Path) -> None:
    """Give the files of a model directory the mode of any new file: safetensors makes its own readable by their owner only."""
    mask = os.umask(0)
    os.umask(mask)
    for file in directory.glob("*.safetensors"):
        file.chmod(0o666 & ~mask)
