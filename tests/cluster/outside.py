"""What others on the machine meet of a run's processes: sockets, and a local cluster that asks for a token."""

import contextlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil

ASK = """
import sys
from cluster.fleet.connection import await_cluster
try:
    await_cluster(sys.argv[1], 60)
except ValueError as error:
    print(error.problems[0])
"""


def look_from_outside(driver, tmp_path):
    """What another user of the machine meets of the local cluster of a command that runs; its folder."""
    processes = tree(driver.pid)
    assert beyond_loopback(processes) == []
    words = [word for command in processes.values() for word in command]
    assert len({port for *_, port in listening(processes)}) >= 5, "the GCS, the raylet, the dashboard, agents, workers"
    raylet = next(process for process, command in processes.items() if "raylet/raylet" in "".join(command[:1]))
    token = Path(raylet.environ()["RAY_AUTH_TOKEN_PATH"])
    assert [oct(path.stat().st_mode & 0o777) for path in (token, token.parent)] == ["0o600", "0o700"]
    assert token.parent in Path(next(word for word in words if "/plasma_store" in word).partition("=")[2]).parents
    secret = token.read_text()
    assert len(secret) == 64 and not any(secret in word for word in words)
    logs = [path for path in token.parent.glob("r/session_2*/logs/*") if path.is_file()]
    assert logs and not any(secret.encode() in log.read_bytes() for log in logs)
    port = min(port for name, _, port in listening(processes) if "dashboard/dashboard.py" in name)  # 8265, or soon after
    found = [status(f"http://127.0.0.1:{port}/api/v0/nodes", shown) for shown in ("", "0" * 64, secret)]
    assert found == [401, 403, 200]
    address = next(word.partition("=")[2] for word in words if word.startswith("--gcs-address="))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    tokens = [{}, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}]
    tokens += [{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}]
    asked = [subprocess.Popen([sys.executable, "-c", ASK, address], env=clean | x, stdout=subprocess.PIPE) for x in tokens]
    said = [each.communicate(timeout=120)[0].decode() for each in asked]
    wanted = f"RAY_ADDRESS: the Ray cluster at {address} wants a token, and this process has none or another; expected "
    names = "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token as where the cluster was begun\n"
    assert said == [wanted + names] * 3 + [""]
    return token.parent


def status(address, token):
    header = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return urllib.request.urlopen(urllib.request.Request(address, headers=header), timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


def tree(pid):
    """A process and all that it started, with their command lines."""
    found, driver = {}, psutil.Process(pid)
    for process in (driver, *driver.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process] = process.cmdline()
    return found


def listening(processes):
    """(process, address, port) of every socket, TCP and UDP, on which others may speak to them."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            name = " ".join(process.cmdline()) or process.name()
            sockets = process.net_connections("inet")
            found += [(name, s.laddr.ip.removeprefix("::ffff:"), s.laddr.port) for s in sockets if not s.raddr and s.laddr]
    return found


def beyond_loopback(processes):
    return [found for found in listening(processes) if found[1] not in ("127.0.0.1", "::1")]
