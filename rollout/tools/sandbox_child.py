"""What runs in a sandboxed process: it takes its limits, says which the kernel did not take, and runs the program on stdin.

Started as a script, with Python's isolated mode, by `rollout.tools.sandbox`: argv[1] is a JSON object with the folder, the
limits, the paths that may be read, and the descriptor on which to say what is missing.
"""

import importlib.util
import json
import os
import resource
import sys
import traceback
from pathlib import Path


def main() -> None:
    asked = json.loads(sys.argv[1])
    # By its path: what is installed, and what the environment names, does not count here.
    spec = importlib.util.spec_from_file_location("confine", Path(__file__).with_name("confine.py"))
    assert spec and spec.loader
    confine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(confine)
    confine.die_with_parent()
    program = sys.stdin.buffer.read().decode()
    memory = int(asked["memory_bytes"])
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, asked["cpu_seconds"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, asked["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(limit, (value, value))
    folder = Path(asked["folder"])
    readable = [Path(path) for path in asked["readable"]]
    took = {
        "files": confine.files(readable, [folder, Path(os.devnull)]) and confine.no_capabilities() and confine.no_metadata(),
        "network": confine.no_network(),
        "processes": confine.no_new_processes() and confine.no_interference(),
    }
    os.write(asked["status"], json.dumps([name for name, there in took.items() if not there]).encode())
    os.close(asked["status"])
    sys.argv = ["program.py"]
    try:
        code = compile(program, "program.py", "exec")
        exec(code, {"__name__": "__main__"})
    except SystemExit:
        raise
    except BaseException as error:
        # As Python shows it, without this file's frames.
        trace = error.__traceback__ and error.__traceback__.tb_next
        sys.stdout.flush()
        traceback.print_exception(type(error), error, trace)
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
