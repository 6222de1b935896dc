"""The search for a layout, and `cohort plan` and `cohort check` as a user sees them."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from cluster.cli.main import app
from cluster.config.run_config import load
from cluster.planning import hardware, plan
from cluster.planning.fit import Cluster, Layout, NothingFits, fitting, layouts, shortage, sizes
from cluster.planning.hardware import GPUS, ON_CPU
from cluster.planning.plan import MODES, Planner, choice
from cluster.planning.workload import Lengths, Workload, workload_of
from tests.cluster.test_planning import DEVICE, LLAMA_7B, QWEN_7B, SMOLLM2, shape  # noqa: F401
from tests.cluster.test_preflight import QUICKSTART, SMALL, report  # noqa: F401

H100 = GPUS["H100"]
LENGTHS = Lengths(prompt=100, output=400, limit=1000)
WORK = Workload(lengths=LENGTHS, questions=32, group=8, reads=1, reference=True)


def invoke(*args):
    return CliRunner().invoke(app, ["plan", *map(str, args)])


def planned(*args):
    done = invoke(*args, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def recipe(tmp_path):
    """The quickstart's recipe with a model of which there is only a config, and the overrides."""

    def write(config, *overrides):
        (tmp_path / "config.json").write_text(json.dumps(config))
        asked = ["rollout.dtype=bfloat16", "learner.compute_dtype=bfloat16", "rollout.max_new_tokens=1024"]
        return [QUICKSTART, f"model={{path: {tmp_path}}}", *asked, *overrides]

    return write


def test_all_splits_are_tried_that_have_an_engine_and_a_rank(shape):  # noqa: F811
    model, cluster = shape(QWEN_7B), Cluster(device=H100, per_node=4, nodes=2)
    assert sizes(model, cluster) == [1, 2, 4] and sizes(shape(SMOLLM2), Cluster(device=H100, per_node=8)) == [1]
    found = list(layouts(model, WORK, cluster))
    apart = {(x.engines, x.tensor_parallel, x.ranks) for x in found if not x.shared}
    assert {(7, 1, 1), (1, 1, 7), (4, 1, 4), (3, 2, 2), (1, 4, 4), (1, 4, 3)} <= apart
    assert all(e * size + ranks <= 8 for e, size, ranks in apart)
    shared = {(x.engines, x.tensor_parallel, x.ranks, x.devices) for x in found if x.shared}
    assert shared == {(8, 1, 8, 8), (4, 2, 8, 8), (2, 4, 8, 8)}
    with_model = layouts(model, replace(WORK, reward_gpus=1.5), cluster)
    assert max(x.devices for x in with_model) == 6, "the reward model has two of its own"
    assert max(x.engines for x in layouts(model, replace(WORK, questions=3), cluster)) == 3


def test_what_does_not_fit_is_said_with_what_helps(shape):  # noqa: F811
    model = shape(LLAMA_7B)
    with pytest.raises(NothingFits) as refused:
        fitting(model, WORK, Cluster(device=GPUS["4090"], per_node=2))
    first, learner = str(refused.value).splitlines()
    assert first == "a policy of 6.74 B parameters fits on no split of 2 x 4090"
    lack = shortage(model, WORK, Layout(engines=1, tensor_parallel=1, ranks=1), GPUS["4090"])["learner"]
    assert lack == pytest.approx(18 * 6.74e9 + 0.5e9 + 1e9 + 4096 * 5e6 - 25e9, rel=0.2)
    assert learner.startswith("learner: with learner.ranks=2, the nearest") and "more GPUs or nodes" in learner
    with pytest.raises(NothingFits, match="need a GPU each, and there are 1"):
        fitting(model, replace(WORK, reward_gpus=1.0), Cluster(device=H100, per_node=1))
    with pytest.raises(NothingFits, match="engine: with tensor_parallel_size=8.* rollout.max_new_tokens below 400000"):
        long = replace(WORK, lengths=replace(LENGTHS, limit=400_000))
        fitting(model, long, Cluster(device=GPUS["A6000"], per_node=8))


@pytest.mark.parametrize("config", [SMOLLM2, QWEN_7B], ids=["135m", "7b"])
def test_more_nodes_faster_memory_and_shorter_outputs_are_never_slower(shape, config):  # noqa: F811
    model = shape(config)

    def seconds(nodes=1, device=H100, work=WORK):
        return {one.mode: one.seconds for one in Planner(model, work, Cluster(device=device, per_node=8, nodes=nodes)).best()}

    base = seconds()
    assert list(base) == list(MODES)
    assert base["ahead"] <= base["apart"] and base["in flight"] <= 1.001 * base["ahead"]
    for better in (
        seconds(device=replace(H100, bandwidth=2 * H100.bandwidth)),
        seconds(device=replace(H100, narrow=2 * H100.narrow, wide=2 * H100.wide)),
        seconds(work=replace(WORK, lengths=Lengths(prompt=100, output=200, limit=500))),
    ):
        assert all(better[mode] < base[mode] for mode in base)
    more = seconds(nodes=2)
    assert all(more[mode] <= 1.02 * base[mode] for mode in ("apart", "ahead", "in flight"))


def test_the_split_follows_the_longer_phase(shape):  # noqa: F811
    def ranks(work):
        found = {one.mode: one for one in Planner(shape(QWEN_7B), work, Cluster(device=H100, per_node=8, nodes=2)).best()}
        return found["ahead"].layout.ranks

    trains = replace(WORK, updates=16)
    samples = replace(WORK, lengths=Lengths(prompt=100, output=3000, limit=8000), reads=0)
    assert ranks(trains) > ranks(samples)


def test_a_harder_way_to_work_must_be_worth_it(shape):  # noqa: F811
    planner = Planner(shape(SMOLLM2), WORK, Cluster(device=H100, per_node=2))
    one = planner.estimate(Layout(engines=1, tensor_parallel=1, ranks=1), "apart")

    def taking(mode, seconds):
        return replace(one, mode=mode, course=replace(one.course, step=seconds))

    assert choice([taking("apart", 10.0), taking("ahead", 9.6)]).mode == "apart"
    assert choice([taking("apart", 10.0), taking("ahead", 9.0), taking("in flight", 8.7)]).mode == "ahead"
    assert one.dollars(replace(WORK, steps=100), planner.cluster, 3.6) == pytest.approx(one.seconds * 100 * 2 * 3.6 / 3600)


def test_on_cpus_the_roles_take_turns(shape):  # noqa: F811
    planner = Planner(shape(SMOLLM2), replace(WORK, staleness=2), Cluster(device=replace(DEVICE, reached=ON_CPU), per_node=1))
    one = planner.estimate(Layout(engines=1, tensor_parallel=1, ranks=1))
    phases = one.phases
    assert one.seconds == pytest.approx(phases["generate"] + phases["score"] / 32 + phases["train"] + phases["sync"])


def test_what_a_recipe_asks_for_is_planned():
    settings = ["stages.grpo.max_staleness=2", "stages.grpo.in_flight=true", "stages.grpo.updates_per_batch=3"]
    settings += ["stages.grpo.weighting={old: learner, behaviour: {cell: truncated}}", "rollout.kv_cache_gb=2"]
    settings += ["reward.workers=2", "reward.judges=3"]
    config = load(QUICKSTART, settings)
    found = workload_of(config, config.stages[1], LENGTHS)
    assert (found.questions, found.group, found.steps, found.updates) == (16, 16, 90, 3)
    assert (found.staleness, found.in_flight, found.judges, found.cache) == (2, True, 6, 2 * 2**30)
    assert (found.reads, found.reference, found.trained, found.judged_by) == (2, True, 1, 0), "reference, and pi_old"
    assert workload_of(load(QUICKSTART, ["rollout.gpu_memory_utilization=0.7"]), config.stages[1], LENGTHS).utilization == 0.7


def test_a_plan_for_gpus_and_what_to_take_is_a_recipe(recipe):
    asked = recipe(QWEN_7B, "stages.grpo.steps=10")
    found = planned(*asked, "--gpus", "8xH100", "--nodes", "2", "--price", "3.6")
    assert found["model"]["parameters"] == 7_615_616_512 and found["tokens"] == {"prompt": 16, "output": 512, "limit": 1024}
    assert [row["mode"] for row in found["estimates"]] == list(MODES), "the recipe's single rank has no room for it"
    (best,) = (row for row in found["estimates"] if row["best"])
    assert best["cost"] == pytest.approx(best["seconds"] * 10 * 16 * 3.6 / 3600)
    assert best["samples_per_second"] == pytest.approx(256 / best["seconds"])
    taken = load(asked[0], [*asked[1:], *found["take"]])
    layout = best["layout"]
    assert (taken.rollout.workers, taken.rollout.tensor_parallel_size) == (layout["engines"], layout["tensor_parallel"])
    assert (taken.learner.ranks, taken.stages[1].max_staleness) == (layout["ranks"], best["ahead"]["staleness"])
    again = planned(asked[0], *asked[1:], *found["take"], "--gpus", "8xH100", "--nodes", "2")["estimates"][0]
    assert (again["mode"], again["layout"]) == ("recipe", layout) and again["seconds"] == pytest.approx(best["seconds"])


def test_the_table_says_what_it_was_made_of_and_fits_a_log(recipe):
    done = invoke(*recipe(QWEN_7B), "--gpus", "8xH100", "--output-tokens", "300", "--price", "2")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "stage grpo: 16 questions x 16 outputs a step, 90 steps"
    assert lines[1] == "model: 7616 M parameters, 57.3 kB of cache a token in bfloat16"
    assert lines[2] == "tokens: prompts 16, outputs 300, at most 1024 (half of data.max_prompt_tokens)"
    assert lines[3].startswith(
        "hardware: 1 x 8 x H100: 989 TFLOP/s bf16, 67 fp32, of which 40% in bfloat16; 85 GB at 3350 GB/s"
    )
    table = done.stdout[done.stdout.index("shared") :]
    for head in (
        "engines x GPUs of each",
        "learner ranks",
        "generate, s",
        "train, s",
        "step, s",
        "samples/s",
        "cost of the stage",
    ):
        assert head in table
    assert "memory of a GPU: learner weights" in table and "take: rollout.workers=" in table
    assert all(len(line) <= 80 for line in lines[4:17]), "no line of the table is broken"


def test_a_plan_for_this_machine_is_measured_here(monkeypatch):
    monkeypatch.setattr(hardware, "_product_rates", lambda: {"float32": 2e11, "bfloat16": 7e11})
    monkeypatch.setattr(hardware, "_copy_rate", lambda: 1e10)
    found = planned(QUICKSTART)
    (one,) = found["estimates"]
    assert (one["mode"], one["best"], found["cluster"]["device"]["wide"]) == ("recipe", True, 2e11)
    assert 1.0 < one["seconds"] < 8.0
    done = invoke(QUICKSTART)
    assert "memory: rollout.workers 1 x" in done.stdout and "take:" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--gpus", "8xH10"], "found '8xH10', expected a number and a kind, as in 8xH100, of H100, H200"),
        (["--nodes", "2"], "--nodes: 2, without --gpus"),
        (["--gpus", "1xH100", "--output-tokens", "41"], "--output-tokens: found 41, expected 1 to rollout.max_new_tokens"),
        (["--gpus", "1xH100", "--run", "x", "--output-tokens", "4"], "--run: given with --prompt-tokens or --output-tokens"),
        (["--gpus", "1xH100", "--run", "nowhere"], "--run: "),
        (["--gpus", "2xH100", "model={path: nowhere}"], "found no config.json; a plan needs nothing else"),
        (["--gpus", "2xH100", "rollout.workers=0"], "rollout.workers"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments, why):
    done = invoke(QUICKSTART, *arguments)
    assert done.exit_code == 2 and why in done.output


def test_what_fits_nowhere_is_refused_with_what_helps(recipe):
    done = invoke(*recipe(QWEN_7B), "--gpus", "2x4090")
    assert done.exit_code == 2
    assert done.output.startswith(
        "error: a policy of 7.62 B parameters fits on no split of 2 x 4090\nlearner: with learner.ranks=2"
    )


def test_a_recipe_that_never_samples_from_its_policy_is_refused():
    done = invoke(QUICKSTART.with_name("sft.yaml"), "--gpus", "8xH100")
    assert done.exit_code == 2 and "stages: sft: none samples from the policy that it trains" in done.output


@pytest.mark.slow
def test_check_says_what_a_learner_rank_and_an_engine_take_of_a_gpu(report, monkeypatch):  # noqa: F811
    monkeypatch.setattr("cluster.run.preflight.gpus_here", lambda: 2)
    monkeypatch.setattr("cluster.run.preflight.os.sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr("cluster.run.preflight.gpu_memory_here", lambda: 85e9)
    facts = [fact for fact in report().facts if fact.startswith("memory of a GPU")]
    assert [fact.split()[4] for fact in facts] == ["engine", "learner"]
    assert "= 72.2 of 85 GB" in facts[0], "85% of it"
    monkeypatch.setattr("cluster.run.preflight.gpu_memory_here", lambda: 1e9)
    (warning,) = (warning for warning in report().warnings if "learner" in warning)
    assert warning.startswith("memory of a GPU: learner weights 0.0095") and warning.endswith("of 1 GB")


def test_modes_are_simulated_from_batches_that_reach_to_the_end(shape):  # noqa: F811
    planner = Planner(shape(SMOLLM2), replace(WORK, staleness=4), Cluster(device=H100, per_node=2))
    assert len(planner._batches) == plan.STEPS + 9
    assert planner.estimate(Layout(engines=1, tensor_parallel=1, ranks=1)).ahead.staleness == 4
