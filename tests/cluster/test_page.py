"""The run's page: what is prepared for it, how it is served, and what a browser makes of it."""

import base64
import gzip
import http.client
import json
import math
import re
import threading
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from cluster.cli.main import app
from cluster.page.curves import differences, experiment, page_head
from cluster.page.html import write_page
from cluster.page.outputs import chosen, lengths, levels, read_part
from cluster.page.server import Server
from cluster.records.samples import sample_rows
from learner.types import StepReport
from tests.cluster.pages import CHROMIUM, Browser, scored_group, write_run

HOSTILE = '</script><img src=x onerror="document.title=1"><!--'


def blocks(path) -> dict:
    """The data in a page, by the name of its block."""
    found = re.findall(r'<script type="text/plain" id="([\w-]+)">([^<]*)</script>', path.read_text())
    return {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in found}


def test_curves_are_columns_by_stage_and_missing_values_are_none(tmp_path):
    run = write_run(tmp_path / "a-0", {2: [], 3: []})
    (facts,) = page_head([run])["runs"]
    sft, grpo = facts["stages"]
    assert (sft["name"], sft["steps"], sft["columns"]) == ("sft", [1], {"response_length": [3.0], "seconds_step": [2.0]})
    assert grpo["steps"] == [2, 3] and grpo["columns"]["reward"] == [0.2, 0.3] and "kl" not in grpo["columns"]
    assert (facts["finished"], facts["ledger"], facts["alarms"], facts["seed"]) == (False, None, [], 0)
    (run / "alarms.jsonl").write_text('{"step": 3, "alarm": "entropy", "what": "falls", "advice": "warm up"}\n')
    assert page_head([run])["runs"][0]["alarms"][0]["advice"] == "warm up"


def test_runs_that_differ_in_their_seed_only_are_one_experiment(tmp_path):
    runs = [write_run(tmp_path / str(seed), {2: []}, seed, rate) for seed, rate in ((0, 1e-4), (1, 1e-4), (2, 3e-4))]
    head = page_head(runs)
    first, second, other = (run["experiment"] for run in head["runs"])
    assert first == second != other
    assert experiment({"seed": 1, "rows": 1}) != experiment({"seed": 0, "rows": 0}), "only in a path is a number the seed"
    assert ["stages.0.rate", "0.0001", "0.0001", "0.0003"] in head["differences"]
    assert differences(["a: {b: 1, c: 2}", "a: {b: 1}"]) == [["a.c", "2", "-"]]
    table = {row[0]: row[1:] for row in head["table"]}
    assert table["accuracy, first -> last"] == ["0.500 -> 0.500"] * 3
    assert table["seconds step"] == ["3"] * 3 and table["reward, last step"] == ["0.2"] * 3


def test_a_number_a_token_is_a_character_within_11_percent():
    values = [0.0, 1e-8, 2.5e-7, -3e-4, 0.7, -12.0, 31.0, math.nan, None]
    codes = levels(values)
    assert len(codes) == len(values) and codes[7:] == "  "

    def read(code):  # as samples.js has it
        at = code - 48 - 95 if code - 48 >= 95 else code - 48
        return 0.0 if at == 0 else (-1 if code - 48 >= 95 else 1) * 1e-7 * 10 ** ((at - 1) / 11)

    assert [read(ord(code)) for code in codes[:7]] == [0.0, 0.0, *(pytest.approx(v, rel=0.11) for v in values[2:7])]


def test_tokens_have_lengths_in_the_units_of_a_browser_or_none():
    texts = {1: "a", 2: "\N{GRINNING FACE}", 3: ""}
    assert lengths([1, 2, 3], "a\N{GRINNING FACE}", lambda ids: [texts[i] for i in ids]) == [1, 2, 0]
    assert lengths([1, 1], "b", lambda ids: [texts[i] for i in ids]) is None


def test_steps_are_left_out_at_even_distances_and_never_the_last():
    assert chosen(dict.fromkeys(range(1, 11), 10), 100) == list(range(1, 11))
    assert chosen(dict.fromkeys(range(1, 11), 10), 50) == [2, 4, 6, 8, 10]
    assert chosen({1: 10, 2: 10}, 5) == [2] and chosen({}, 5) == []


def test_the_index_holds_what_filters_need_and_the_part_the_rest(tmp_path):
    run = write_run(tmp_path / "a", {2: [scored_group(0, ["ab", "cde"]), scored_group(1, ["f"], "why?")]})
    part = read_part(run / "samples/step_2.jsonl", 2, lambda ids: list(map(chr, ids)))
    index, data = part.index, json.loads(gzip.decompress(part.data))
    assert (index["stage"], index["groups"], index["g"]) == ("grpo", ["grpo/0", "grpo/1"], [0, 0, 1])
    assert (index["r"], index["a"], index["n"], index["v"]) == ([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [2, 3, 1], ["score"] * 3)
    assert [asked["q"] for asked in data["asked"]] == ["1 + 1", "why?"]
    assert index["m"] == [0.03] * 3 and [row["adv"] for row in data["rows"]] == [[[0, 1.0]]] * 3
    assert [row["e"] for row in data["rows"]] == [[[0, 0.25], [1, 1.0]], [[0, 0.25], [2, 0.0]], [[0, 0.25], [0, 1.0]]]
    assert [row["n"] for row in data["rows"]] == [[1, 1], [1, 1, 1], [1]] and data["rows"][1]["t"] == "cde"


def test_of_each_token_a_sample_records_what_is_known(tmp_path):
    group = scored_group(0, ["abc"])
    (scored,) = group.scored
    sample = replace(scored.sample, sampled_mask=(True, False, True), logprobs=(-0.123456, 0.0, -math.inf))
    report = StepReport(
        metrics={}, advantages=[0.5], tokens=2, token_advantages=[(0.5, 0.5, -1.0)], mismatch=[(1.23456e-5, 0.0, math.nan)]
    )
    (row,) = sample_rows([replace(group, scored=(replace(scored, sample=sample),))], {"0": 0}, [0.5], report)
    assert (row["logprobs"], row["mismatch"]) == ([-0.1235, 0.0, None], [1.23e-5, 0.0, None])
    assert (row["advantages"], row["tool_tokens"]) == ([[0, 0.5], [2, -1.0]], [1])
    (bare,) = sample_rows([group], {"0": 0})
    assert (bare["mismatch"], bare["advantages"], bare["events"]) == ([], [], [[0, 0.25], [2, 1.0]])


def test_the_file_holds_everything_and_no_text_of_the_run_as_markup(tmp_path):
    run = write_run(tmp_path / "<b>run", {2: [scored_group(0, [HOSTILE, "no"], HOSTILE)]})
    write_page([run], tmp_path / "run.html")
    found, text = blocks(tmp_path / "run.html"), (tmp_path / "run.html").read_text()
    assert list(found) == ["head", "part-0-2"] and found["part-0-2"]["rows"][0]["t"] == HOSTILE
    assert "onerror" not in text and "<b>" not in text and "&lt;b&gt;run" in text
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg|http-equiv", "", text), "nothing is loaded"


@pytest.fixture
def server(tmp_path):
    served = Server([write_run(tmp_path / "run", {2: [scored_group(0, ["ab"])]})])
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


def ask(server, path, host=None):
    link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    link.request("GET", path, headers={"Host": host} if host else {})
    answer = link.getresponse()
    body = answer.read()
    link.close()
    return answer.status, gzip.decompress(body) if answer.status == 200 else body


def test_a_live_run_is_served_to_who_has_the_address_and_renewed(server, tmp_path):
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    root = f"/{server.token}/"
    assert ask(server, root)[0] == 200 and b"connect-src 'self'" in ask(server, root)[1]
    for path, host in (("/", None), ("/x/", None), (root, "evil.example"), (root + "part/0/9", None), (root + "../x", None)):
        assert ask(server, path, host)[0] == 404, (path, host)
    head = json.loads(ask(server, root + "head")[1])
    assert head["runs"][0]["state"] == "stopped before its end"
    assert json.loads(ask(server, root + "part/0/2")[1])["rows"][0]["t"] == "ab"
    assert json.loads(ask(server, root + "version")[1]) == {"version": head["version"]}
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "stage": "grpo", "reward": 0.9}\n{"step": 4, "cut o')
    assert json.loads(ask(server, root + "version")[1]) != {"version": head["version"]}
    assert json.loads(ask(server, root + "head")[1])["runs"][0]["stages"][1]["columns"]["reward"] == [0.2, 0.9]


def test_compare_prints_a_table_and_writes_one_page_of_all(tmp_path):
    runs = [write_run(tmp_path / f"r{seed}", {2: [scored_group(0, ["ab"])]}, seed, 1e-4 * (seed + 1)) for seed in range(2)]
    out = tmp_path / "both.html"
    done = CliRunner().invoke(app, ["compare", *map(str, runs), "--out", str(out)])
    assert done.exit_code == 0 and done.stdout.splitlines()[-1] == str(out)
    assert re.search(r"stages\.0\.rate +0\.0001 +0\.0002", done.stdout) and re.search(
        r"reward, last step +0\.2 +0\.2", done.stdout
    )
    assert list(blocks(out)) == ["head", "part-0-2", "part-1-2"]
    alone = CliRunner().invoke(app, ["compare", str(runs[0])])
    assert alone.exit_code == 2 and "found 1 run, expected at least two" in alone.output
    assert CliRunner().invoke(app, ["watch", str(tmp_path)]).exit_code == 2


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_a_browser_shows_hostile_text_as_text_and_opens_every_part(tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.page.html.pieces_of", lambda run_dir: lambda ids: list(map(chr, ids)))
    groups = {2: [scored_group(0, [f"{HOSTILE} 7", "8"], f"what? {HOSTILE}"), scored_group(1, ["none"], "other")]}
    write_page([write_run(tmp_path / "run", groups)], tmp_path / "run.html")
    with Browser() as browser:
        browser.size(1300, 900)
        browser.open(f"{(tmp_path / 'run.html').as_uri()}#tab=samples&q=what%3F", "document.querySelector('article')")
        assert browser.run("document.title") == "run" and browser.run("document.images.length") == 0, "nothing of it ran"
        assert browser.run("document.querySelector('.question').textContent") == f"what? {HOSTILE}"
        tokens = "[...x.querySelectorAll('span:not(.step)')].map((y) => y.textContent).join('')"
        assert browser.run(f"[...document.querySelectorAll('.said')].map((x) => {tokens})") == [f"{HOSTILE} 7", "8"]
        browser.run("put({ colour: 'mismatch' })")
        browser.wait("document.querySelector('.said span')?.style.backgroundColor")
        assert "mismatch -0.028" in str(browser.run("document.querySelector('.said span').title"))
        assert browser.run("[...document.querySelectorAll('.said')][0].querySelectorAll('.step')[1].textContent") == "step 2: 1"
        assert browser.run("document.querySelectorAll('.item').length") == 1, "the other group is not among what is found"
        for tab in ("curves", "time", "ledger", "config"):
            browser.run(f"location.hash = 'tab={tab}'")
            browser.wait(f"document.body.dataset.ready === '{tab}'")
        assert "stages" in str(browser.run("document.querySelector('pre').textContent"))
        assert browser.errors == []
