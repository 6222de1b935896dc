"""Jobs without a cluster: what is sent, how it is named, what is said of its end. Ray's own client speaks to a server that is
faked where it would open a connection."""

import io
import json
import zipfile

import pytest
import requests
import yaml

import cluster.jobs.submission
from tests.cluster.test_cli import invoke
from tests.cluster.test_job_endings import CHAINED, LOG

AT = ("--address", "http://head:8265")
RECIPE = {
    "name": "mine",
    "model": {"path": "models/tiny"},
    "data": {"questions": {"file": "data/q.jsonl"}, "prompt": {"template": "plain"}},
    "reward": {"function": "mine.py:score"},
    "stages": [
        {
            "algorithm": "grpo",
            "reward": "rule",
            "steps": 1,
            "questions_per_step": 2,
            "samples_per_question": 2,
            "optimizer": {"learning_rate": 1e-4},
        }
    ],
}


class Server:
    """Ray's job server: packages and jobs by name; `down` counts answers that do not come, `young` those of a cluster without
    agents yet."""

    def __init__(self):
        self.jobs, self.logs, self.packages, self.asked, self.down, self.token = {}, {}, {}, [], 0, None
        self.young = 0

    def request(self, method, url, *, timeout, headers, data=None, json=None, **_):
        assert timeout == 30 and url.startswith("http://head:8265/")
        path = url.removeprefix("http://head:8265")
        self.asked.append((method, path))
        if self.down:
            self.down -= 1
            raise requests.exceptions.ConnectionError("refused")
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            return self.answer("no", 403)
        if path == "/api/version":
            return self.answer({"ray_version": "2.60.0"})
        if path.startswith("/api/packages/"):
            if method == "PUT":
                self.packages[path] = data
            return self.answer({}, 200 if path in self.packages else 404)
        _, _, job, what = (path.removeprefix("/api") + "//").split("/")[:4]
        if method == "POST" and not job and self.young:
            self.young -= 1
            return self.answer("No available agent to submit job, please try again later.", 500)
        if method == "POST" and not job:
            self.jobs[json["submission_id"]] = {"type": "SUBMISSION", "status": "RUNNING", **json}
            return self.answer({"job_id": json["submission_id"], "submission_id": json["submission_id"]})
        if not job:
            return self.answer(list(self.jobs.values()))
        if job not in self.jobs:
            return self.answer(f"Job {job} does not exist", 404)
        if what == "stop":
            self.jobs[job]["status"] = "STOPPED"
            return self.answer({"stopped": True})
        return self.answer({"logs": self.logs.get(job, "")} if what == "logs" else self.jobs[job])

    def answer(self, body, code=200):
        found = requests.Response()
        found.status_code, found.raw = code, io.BytesIO(json.dumps(body).encode())
        return found


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setattr(requests, "request", made.request)
    monkeypatch.setattr(cluster.jobs.submission, "POLL_S", 0.0)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of a driver; Ray's client would prefer it
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    return made


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A project: the files of RECIPE, and others that nobody needs."""
    for name, size in {
        "models/tiny/model.safetensors": 2000, "models/tiny/.git/big": 9000, "data/q.jsonl": 100, "data/other": 50,
        "mine.py": 10, "helper.py": 20, ".git/x": 9000, ".venv/x": 9000, "runs/old/x": 9000,
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"#" * size)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(*words):
    return invoke("submit", "r.yaml", "output=/shared/mine", *AT, *words)


def test_a_job_takes_the_recipe_and_what_it_names_and_the_listed_variables_and_nothing_else(server, here, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    done = submit("--env", "MY_KEY", "--include", "helper.py", "rollout.workers=2", "data.prompt.suffix='a b'")
    assert done.exit_code == 0, done.output
    (sent,) = server.packages.values()
    names = {info.filename for info in zipfile.ZipFile(io.BytesIO(sent)).infolist() if not info.is_dir()}
    assert names == {"r.yaml", "mine.py", "helper.py", "data/q.jsonl", "models/tiny/model.safetensors"}
    job = server.jobs["mine"]
    assert job["runtime_env"]["env_vars"] == {"MY_KEY": "secret", "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    where, _, train = job["entrypoint"].partition(" exec ")
    assert where == "mkdir -p /shared/mine.job && cp -R . /shared/mine.job && cd /shared/mine.job &&"
    words = "rollout.workers=2 'data.prompt.suffix='\"'\"'a b'\"'\"'' output=/shared/mine"
    assert train == f"cohort train r.yaml --or-resume output=/shared/mine {words}"
    size = (here / "r.yaml").stat().st_size + 2000 + 100 + 10 + 20
    assert f"{size / 1e6:10.3f} MB  in all; only MY_KEY, RAY_JOB_STOP_WAIT_TIME_S of the environment" in done.output
    assert "secret" not in done.output and "job mine runs /shared/mine" in done.output


def test_ray_waits_longer_for_a_stopped_job_than_its_run_may_take(server, here):
    assert submit("cluster.stop_grace_s=77.5").exit_code == 0
    assert server.jobs["mine"]["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "88"}


def test_a_run_that_is_submitted_again_gets_the_next_name_and_one_that_goes_on_is_refused(server, here):
    assert submit().exit_code == 0
    again = submit()
    assert again.exit_code == 2 and "job mine runs /shared/mine; expected `cohort stop mine` first" in again.stderr
    assert list(server.jobs) == ["mine"]
    server.jobs["mine"]["status"] = "FAILED"
    assert submit().exit_code == 0 and submit("output=/shared/other").exit_code == 0
    assert list(server.jobs) == ["mine", "mine-2", "mine-3"]
    taken = submit("output=/shared/third", "--job", "mine")
    assert taken.exit_code == 2 and "job mine: this name is taken" in taken.stderr


@pytest.mark.parametrize(
    "words, said",
    [
        (["--limit-mb", "0.002"], "and --limit-mb is 0.002; expected large files under absolute paths"),
        (["--env", "NOT_SET"], "--env NOT_SET: is not set here"),
        (["output=runs/x"], "output: found runs/x; the directory of a job goes with the job"),
        (["data.questions.file=../q.jsonl"], "../q.jsonl: is outside of the current directory"),
        (["data.questions.file=gone.jsonl"], "gone.jsonl: no such file or directory"),
        (["rollout.wokers=2"], "rollout.wokers"),
        (["--address", "head:8265"], "--address: found head:8265; expected that of the dashboard"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is_asked_of_the_cluster(server, here, words, said):
    done = submit(*words)
    assert done.exit_code == 2 and said in done.stderr, done.stderr
    assert server.asked == []


def test_a_refusal_names_the_largest_paths_first(server, here):
    said = submit("--limit-mb", "0.002").stderr
    assert said.index("models/tiny/model.safetensors") < said.index("data/q.jsonl") < said.index("mine.py")


def test_a_cluster_that_has_just_begun_is_asked_again_and_not_for_ever(server, here, monkeypatch):
    monkeypatch.setattr("cluster.jobs.client.POLL_S", 0.0)
    server.young = 3
    assert submit().exit_code == 0 and server.young == 0 and list(server.jobs) == ["mine"]
    monkeypatch.setattr("cluster.jobs.client.AGENT_S", -1.0)
    server.young = 2
    late = submit("output=/shared/other")
    assert late.exit_code == 2 and "http://head:8265 refuses: " in late.stderr and server.young == 1


def test_nobody_answers_or_wants_another_token_or_knows_no_such_job(server, here, monkeypatch):
    for command in (["status", "mine"], ["logs", "mine"], ["stop", "mine"]):
        unknown = invoke(*command, *AT)
        assert unknown.exit_code == 2 and unknown.stderr == "error: job mine: http://head:8265 knows none of this name\n"
    server.token = "another"
    wrong = submit()
    assert wrong.exit_code == 2 and "the cluster at http://head:8265 wants a token, and this process has none" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
    server.down = 1000
    down = submit()
    assert down.exit_code == 2 and "error: --address: found http://head:8265, where no Ray cluster answers" in down.stderr
    assert not server.jobs


def test_logs_are_followed_to_the_end_through_a_server_that_is_away_for_a_while(server, here, monkeypatch):
    submit()
    server.logs["mine"] = "one\n"
    info = Server.request
    came = iter(["", "two\n", "three\n"])

    def request(method, url, **how):
        if url.endswith("/logs"):
            server.logs["mine"] += next(came, "")
            if server.logs["mine"].endswith("three\n"):
                server.jobs["mine"] |= {"status": "FAILED", "driver_exit_code": 2}
            if server.logs["mine"] == "one\ntwo\n" and not server.down:
                server.down = 2
        return info(server, method, url, **how)

    monkeypatch.setattr(requests, "request", request)
    followed = invoke("logs", "mine", "--follow", *AT)
    assert (followed.stdout, followed.exit_code) == ("one\ntwo\nthree\n", 2)
    monkeypatch.setattr(cluster.jobs.submission, "LOST_S", -1.0)
    server.jobs["mine"]["status"] = "RUNNING"
    server.logs["mine"], came = "one\n", iter(["", "two\n"])
    lost = invoke("logs", "mine", "--follow", *AT)
    assert lost.exit_code == 3 and "no Ray cluster answers" in lost.stderr


def test_a_stopped_job_is_told_from_one_that_was_killed(server, here):
    submit()
    server.logs["mine"] = LOG
    stopped = invoke("stop", "mine", *AT)
    assert (stopped.exit_code, stopped.stdout) == (0, LOG.splitlines()[1] + "\n")
    assert ("POST", "/api/jobs/mine/stop") in server.asked
    again = invoke("stop", "mine", *AT)
    assert (again.exit_code, again.stdout) == (0, "job mine has ended already: STOPPED\n")
    server.jobs["mine"]["status"], server.logs["mine"] = "RUNNING", "asked for the data\n"
    killed = invoke("stop", "mine", *AT)
    assert killed.exit_code == 3 and "job mine was killed before it had saved (exit code 3)" in killed.stderr


def test_status_shows_the_run_where_its_directory_is_seen_and_the_first_error_of_a_failed_job(server, here):
    submit()
    server.logs["mine"] = "grpo 3/9\n"
    assert invoke("status", "mine", *AT).stdout == "job mine: RUNNING\ngrpo 3/9\n"
    server.logs["mine"] = CHAINED + "exit code 3\n"
    server.jobs["mine"] |= {"status": "FAILED", "driver_exit_code": 3, "message": "Job entrypoint command failed"}
    said = invoke("status", "mine", *AT).stdout
    assert said == 'job mine: FAILED, exit code 3\nOSError: no space\n  File "a.py", line 1, in write\n'
    found = json.loads(invoke("status", "mine", "--json", *AT).stdout)
    assert (found["exit_code"], found["output"], found["run"]) == (3, "/shared/mine", None)
