"""Parts for the GPU benchmark's tests, one for every way to end."""

import os
import subprocess
import time
from pathlib import Path

from gpu import Line

RIGHT = Line(name="one", passed=True, text="right", figures={"x": 1.5})


def well():
    yield RIGHT
    yield Line(name="two", passed=None, text="does not fit")


def wrong():
    yield RIGHT
    yield Line(name="two", passed=False, text="wrong")


def raises():
    yield RIGHT
    raise RuntimeError("no kernel image")


def crashes():
    yield RIGHT
    os.abort()


def hangs(pid_file: str):
    """With a process in a session of its own below it, as Ray's are."""
    yield RIGHT
    below = subprocess.Popen(["sleep", "300"], start_new_session=True)
    Path(pid_file).write_text(str(below.pid))
    time.sleep(300)
