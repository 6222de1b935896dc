"""What a program may not do, each tried; a protection that this kernel lacks is skipped with the reason."""

import asyncio
import contextlib
import os
import platform
import resource
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rollout.tools.sandbox import Sandbox, SandboxConfig, SandboxError

pytestmark = pytest.mark.slow

LIMITS = SandboxConfig(seconds=3, memory_gb=0.5, output_characters=500)


def run(program, config=LIMITS):
    return asyncio.run(Sandbox(config).run(program))


@pytest.fixture(scope="module", autouse=True)
def protected():
    try:
        asyncio.run(Sandbox(LIMITS).check())
    except SandboxError as error:
        pytest.skip(str(error))


def refused(program, error):
    """The program's attempt fails with this error, and it goes on."""
    ran = run(f"try:\n    {program}\n    print('done')\nexcept {error} as error:\n    print('refused')")
    assert ran.output == "refused\n" and ran.ended == "by itself", ran


def test_a_program_computes_and_its_errors_are_its_output():
    assert run("import math\nprint(math.comb(10, 3))").output == "120\n"
    failed = run("print(1)\ndef f():\n    return 1 / 0\nf()")
    assert failed.output.startswith("1\nTraceback") and failed.output.endswith("ZeroDivisionError: division by zero\n")
    assert "sandbox_child" not in failed.output and 'File "program.py", line 4' in failed.output
    assert "SyntaxError" in run("print(").output and run("import sys; sys.exit(3)").ended == "by itself"
    assert run("print('é', 'π')").output == "é π\n"


def test_a_worker_with_more_open_files_than_select_takes_runs_programs():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert run("print(7)").output == "7\n" and run("while True: pass").ended == "time"
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_usual_libraries_can_be_imported():
    assert run("import sympy\nprint(sympy.sqrt(8))", SandboxConfig(seconds=30)).output == "2*sqrt(2)\n"


def test_no_network():
    server = socket.create_server(("127.0.0.1", 0))
    try:
        port = server.getsockname()[1]
        refused(f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)", "PermissionError")
        refused("import socket; socket.socket(socket.AF_UNIX)", "PermissionError")
    finally:
        server.close()


def test_no_file_outside_its_folder(tmp_path):
    (tmp_path / "secret").write_text("secret")
    refused(f"open({str(tmp_path / 'secret')!r}).read()", "PermissionError")
    refused(f"open({str(tmp_path / 'new')!r}, 'w')", "PermissionError")
    refused(f"import os; os.remove({str(tmp_path / 'secret')!r})", "PermissionError")
    refused("open('/etc/passwd').read()", "PermissionError")
    refused(f"open({str(Path(__file__))!r}, 'a')", "PermissionError")
    refused(f"import os; os.listdir({str(tmp_path)!r})", "PermissionError")
    assert (tmp_path / "secret").read_text() == "secret" and os.listdir(tmp_path) == ["secret"]
    assert run("open('a.txt', 'w').write('x' * 10)\nprint(open('a.txt').read())").output == "xxxxxxxxxx\n"


def test_the_folder_is_gone_afterwards_and_files_have_a_size_limit():
    folder = Path(run("import os\nprint(os.getcwd())").output.strip())
    assert "cohort_sandbox_" in folder.name and not folder.exists()
    assert run("open('big', 'wb').write(bytes(10**8))").ended in ("signal", "by itself")


def test_no_new_processes_and_threads_work():
    refused("import os; os.fork()", "PermissionError")
    refused("import subprocess; subprocess.run(['/bin/true'])", "PermissionError")
    refused("import os; os.posix_spawn('/bin/true', ['true'], {})", "PermissionError")
    assert run("import threading\nt = threading.Thread(target=print, args=(7,)); t.start(); t.join()").output == "7\n"


def sandboxed():
    """How many processes there are of this process's sandboxes."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found += f"cohort_sandbox_{os.getpid()}_" in path.read_text()
    return found


def test_a_fork_bomb_is_none():
    bomb, seen = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass", set()
    with ThreadPoolExecutor(1) as pool:
        ran = pool.submit(run, bomb)
        while not ran.done():
            seen.add(sandboxed())
            time.sleep(0.05)
    assert ran.result().ended == "time" and {1} <= seen <= {0, 1} and sandboxed() == 0


def test_no_signals_and_no_looking_into_other_processes(monkeypatch):
    monkeypatch.setenv("COHORT_SECRET", "hidden-from-programs")
    me = os.getpid()
    refused(f"import os; os.kill({me}, 0)", "PermissionError")
    refused(f"open('/proc/{me}/environ').read()", "PermissionError")
    refused("open('/proc/self/environ').read()", "PermissionError")
    assert "hidden" not in run("import os\nprint(dict(os.environ))").output
    attach = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.ptrace(16, {me}, 0, 0), ctypes.get_errno())"
    assert run(attach).output == "-1 1\n"


X32 = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for number in (39, 41, 57, 62, 20000):  # getpid, which is allowed by its own number; socket, fork, kill; none
    print(libc.syscall(ctypes.c_long(0x40000000 | number), 1, 0, 0), ctypes.get_errno())
print(libc.syscall(39) > 0)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have one table of system calls")
def test_the_second_table_of_system_calls_is_refused_whole():
    # EPERM is the filter's answer; a kernel without this table, and without the filter, says ENOSYS.
    assert run(X32).output == "-1 1\n" * 5 + "True\n"


OWNED = """
import fcntl, os
r, w = os.pipe()
try:
    fcntl.fcntl(r, {command}, {value})
    print('done')
except PermissionError:
    print('refused')
"""


def test_no_way_round_to_signal_or_limit_another_process():
    other = subprocess.Popen(["sleep", "60"])
    try:
        # F_SETOWN and F_SETSIG: whom the kernel is to signal when a descriptor is ready, and how.
        for command, value in ((8, other.pid), (10, 9)):
            assert run(OWNED.format(command=command, value=value)).output == "refused\n"
        refused(f"import resource; resource.prlimit({other.pid}, resource.RLIMIT_NOFILE, (3, 3))", "PermissionError")
        assert run("import resource; print(resource.getrlimit(resource.RLIMIT_CORE))").output == "(0, 0)\n"
        for number in (129, 297) if platform.machine() == "x86_64" else (138, 240):
            call = (
                f"import ctypes; print(ctypes.CDLL(None).syscall({number}, {other.pid}, 9, ctypes.create_string_buffer(128)))"
            )
            assert run(call).output == "-1\n"
        refused(f"import os; os.sched_setaffinity({other.pid}, [0])", "PermissionError")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_no_change_of_modes_and_times_and_no_shared_memory(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    before = file.stat()
    refused(f"import os; os.chmod({str(file)!r}, 0)", "PermissionError")
    refused(f"import os; os.utime({str(file)!r}, (0, 0))", "PermissionError")
    refused(f"import os; os.setxattr({str(file)!r}, 'user.a', b'1')", "PermissionError")
    assert (file.stat().st_mode, file.stat().st_mtime) == (before.st_mode, before.st_mtime)
    assert run("import ctypes; print(ctypes.CDLL(None).shmget(0, 4096, 0o1600))").output == "-1\n"
    refused("import os; os.memfd_create('a')", "PermissionError")


def test_a_deeply_nested_folder_is_removed():
    before = set(Path(tempfile.gettempdir()).glob("cohort_sandbox_*"))
    ran = run("import os\nfor i in range(1500):\n    os.mkdir('d')\n    os.chdir('d')\nprint('done')")
    assert ran.output == "done\n" and set(Path(tempfile.gettempdir()).glob("cohort_sandbox_*")) <= before


def test_memory_time_and_output_are_limited():
    assert "MemoryError" in run("x = bytearray(10**10)").output
    start = time.monotonic()
    slept = run("import time\nprint('begun', flush=True)\ntime.sleep(100)")
    assert slept.ended == "time" and slept.output == "begun\nTimeoutError: the program ran longer than 3 s\n"
    assert run("9 ** (9 ** 9)").ended == "time"
    flood = run("while True:\n    print('x' * 1000)")
    assert flood.ended == "output" and len(flood.output) < 510 and flood.output.endswith("...\n")
    assert time.monotonic() - start < 20


def test_a_crash_is_a_result():
    ran = run("import ctypes\nctypes.string_at(0)")
    assert ran.ended == "signal" and "SIGSEGV" in ran.output


def test_what_the_program_says_of_protections_does_not_count():
    tries = "    try:\n        os.write(d, b'[]')\n        print(d)\n    except OSError:\n        pass"
    said = f"import os\nfor d in range(3, 64):\n{tries}"
    assert run(said).output == "", "no descriptor but the usual three is open"


def test_programs_run_beside_each_other():
    async def many():
        sandbox = Sandbox(LIMITS)
        return await asyncio.gather(*(sandbox.run(f"print({i} * 2)") for i in range(8)))

    assert [ran.output for ran in asyncio.run(many())] == [f"{2 * i}\n" for i in range(8)]


def test_a_missing_protection_refuses_unless_it_may_be_missing(monkeypatch, tmp_path):
    child = Path(__file__).parents[2] / "rollout/tools/sandbox_child.py"
    (tmp_path / "sandbox_child.py").write_text(child.read_text().replace("confine.no_network()", "False"))
    (tmp_path / "confine.py").write_text(child.with_name("confine.py").read_text())
    monkeypatch.setattr("rollout.tools.sandbox.__file__", str(tmp_path / "sandbox.py"))
    with pytest.raises(SandboxError, match="lacks a protection: network; to do without, name it in `without`"):
        run("print(1)")
    assert run("print(1)", LIMITS.model_copy(update={"without": ("network",)})).output == "1\n"


def test_a_sandbox_that_fails_is_an_error_and_no_output(monkeypatch, tmp_path):
    (tmp_path / "sandbox_child.py").write_text("raise SystemExit(1)")
    monkeypatch.setattr("rollout.tools.sandbox.__file__", str(tmp_path / "sandbox.py"))
    with pytest.raises(SandboxError, match="said nothing"):
        run("print(1)")
