"""What `cohort check` prints and `cohort train` runs first: everything that can be known wrong before a process starts.

Reads the model's files, tokenizer and all data rows. Needs no GPU and starts no Ray; whether a cluster elsewhere has room for
the roles is asked when the run connects to it.
"""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cluster.config.contradictions import unread_here
from cluster.config.recipe import ConfigError
from cluster.config.run_config import RunConfig, load
from cluster.fleet.bundles import Node, PlacementError, bundles, fit
from cluster.fleet.demand import demands, held_parameters, memory, memory_here, too_many
from cluster.planning.memory import in_words, of_recipe, on_cpu
from cluster.planning.shapes import shape_of
from cluster.records.trackers import missing
from cluster.run.preflight_episodes import check_environment, check_sandbox
from cluster.run.preflight_model import Model, check_model, check_reward_model, gpu_memory_here, gpus_here, read_model
from cluster.run.store import unusable
from reward.judging.judges import gold_check, rule_pool, rule_row
from reward.judging.pool import Judge
from reward.judging.selftest import Report, self_test
from reward.scorer import formed
from rollout.config import SourceConfig
from rollout.data.contamination import overlaps
from rollout.data.datasets import Data, DemonstrationSet, load_data
from rollout.data.rows import TASK_TRAINING_ROWS, load_rows
from rollout.data.selection import Uniform
from rollout.data.templates import fill_questions, text_of
from rollout.tools.episode import without_tool_output

BYTES_PER_PARAMETER = 12
"""Of a checkpoint: float32 weights and Adam's two moments. A frozen reference adds four."""


def check_recipe(
    recipe: Path, overrides: list[str] | None, benchmarks: Sequence[Path], question: str
) -> tuple[RunConfig | None, Report]:
    """The recipe's configuration, where it has one, and what is found of it; `question` is the template of benchmarks' rows."""
    try:
        config = load(recipe, overrides)
        sources = [SourceConfig(file=file, question=question) for file in benchmarks]
    except ConfigError as error:
        return None, Report(problems=[str(problem) for problem in error.problems])
    except ValueError as error:
        return None, Report(problems=[str(error)])
    return config, check(config, sources)


def check(config: RunConfig, benchmarks: Sequence[SourceConfig] = ()) -> Report:
    """Check model, data, sizes and the run directory, and the data against benchmarks. Problems are collected, not raised."""
    report = Report()
    _check_output(config, report)
    report.problems += _unread(config) + missing(config.trackers)
    if config.mirror and (why := unusable(config.mirror)):
        report.problems.append(why)
    check_sandbox(config, report)
    _arithmetic(config, report)
    model = None
    try:
        model = read_model(config)
        check_model(config, model, report)
        check_reward_model(config, report)
        with rule_pool(config.reward) as rule:
            golds, tools = gold_check(config.reward, rule), bool(config.rollout.tools)
            data = load_data(config.data, model.tokenizer, config.seed, golds, tools)
            _check_data(config, data, model, report)
            if data.demonstrations is not None:
                _check_demonstrations(config, data.demonstrations, model, rule, report)
            _check_judge(config, data, rule, report)
        check_environment(config, data.train.question(0), model.tokenizer, report)
        for source in benchmarks:
            _check_overlap(data, source, report)
    except ValueError as error:
        report.problems.append(str(error))
    if model is not None:
        _check_disk(config, model, report)
        _check_room(config, model, report)
    return report


def _check_output(config: RunConfig, report: Report) -> None:
    out = config.output
    if "working_dir_files" in out.parts:
        found = f"found {out}, in Ray's copy of the job's working directory, which goes with the job"
        report.problems.append(f"output: {found}; expected an absolute path")
    if out.is_dir() and any(out.iterdir()):
        report.problems.append(f"output: {out} is not empty; expected a new directory, or `cohort resume {out}`")
    elif out.exists() and not out.is_dir():
        report.problems.append(f"output: {out} is a file; expected a directory")
    elif not (folder := _existing(out)).is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        report.problems.append(f"output: {out} cannot be made: {folder} is not a directory that can be written to")


def _unread(config: RunConfig) -> list[str]:
    """What the cluster would not read: this machine's is known, of another one only that it runs."""
    if address := os.environ.get("RAY_ADDRESS"):
        return unread_here(config, address=address)
    return unread_here(config, gpus=bool(gpus_here()), address="")


def _arithmetic(config: RunConfig, report: Report) -> None:
    for stage in config.stages:
        asked = f"{stage.steps} steps x {stage.questions_per_step} questions x {stage.samples_per_question} outputs"
        updates = f"{stage.steps * stage.updates_per_batch} updates"
        outputs = stage.questions_per_step * stage.samples_per_question
        report.facts.append(f"stage {stage.name}: {asked} = {outputs} outputs a step, {updates} in all")
    budget = config.learner.max_tokens_per_microbatch
    report.facts.append(f"learner: {config.learner.ranks} rank(s), micro-batches of at most {budget} tokens, padding included")


def _check_data(config: RunConfig, data: Data, model: Model, report: Report) -> None:
    longest = max(len(data.train.question(n).prompt_ids) for n in range(len(data.train)))
    report.facts.append(
        f"questions: {len(data.train)} to train on, {len(data.evaluation)} held out, prompts up to {longest} tokens"
    )
    source = config.data.questions
    if source.task and source.rows is None and len(data.train) < TASK_TRAINING_ROWS:
        report.facts.append(f"data.questions: all {len(data.train)} questions of {source.task} that are not held out")
    if data.unjudgeable:
        report.warnings.append(
            f"{data.unjudgeable} questions are left out: their reference answer is absent or cannot be judged"
        )
    if data.removed_questions or data.removed_outputs:
        removed = f"{data.removed_questions} questions and {data.removed_outputs} given outputs"
        report.warnings.append(f"{removed} are left out: an evaluation question has the same text")
    if (asked := config.evaluation.questions) and asked > len(data.evaluation):
        report.warnings.append(f"evaluation.questions: {asked}, but only {len(data.evaluation)} are held out; all are asked")
    given = {"demonstrations": data.demonstrations, "preferences": data.preferences, "labelled_steps": data.labelled_steps}
    for stage in config.stages:
        rows = len(given[stage.given] if stage.given else data.train)
        rows = min(rows, stage.offline_questions or rows)
        if not isinstance(stage.selection, Uniform) and stage.questions_per_step > rows:
            found = f"a step takes {stage.questions_per_step} different questions, and there are {rows}"
            report.problems.append(f"stage {stage.name}: {found}; expected more questions, or selection: {{cell: uniform}}")
        epochs = stage.steps * stage.questions_per_step / rows
        report.facts.append(f"stage {stage.name}: {epochs:.2g} epochs of {rows} rows")
        if stage.questions_per_step > rows:
            report.warnings.append(
                f"stage {stage.name}: a step takes {stage.questions_per_step} of {rows} rows, some of them twice"
            )
    first = data.train.question(0)
    report.facts.append(f"prompt of {first.id}: {model.tokenizer.decode(list(first.prompt_ids))!r}, answer {first.gold!r}")


def _check_judge(config: RunConfig, data: Data, rule: Judge, report: Report) -> None:
    """The judge tried on the run's own questions."""
    training = [data.train.question(n) for n in range(len(data.train))]
    self_test([*training, *data.evaluation], config.reward, rule, report)


def _check_overlap(data: Data, source: SourceConfig, report: Report) -> None:
    """Training questions and given outputs that hold a text of a benchmark."""
    rows = load_rows(source)
    benchmark = list(zip([row.where for row in rows], map(text_of, fill_questions(rows, source.question)), strict=True))
    texts = [(q.id, q.text) for q in data.train.rows]
    if data.demonstrations is not None:
        texts += [
            (f"demonstration {shown.question.id}", f"{shown.question.text}\n{shown.output.text}")
            for shown in data.demonstrations.rows
        ]
    found = overlaps(texts, benchmark)
    report.facts.append(f"contamination: {len(found)} of {len(texts)} training texts hold one of {len(rows)} of {source.file}")
    report.warnings += [f"{x.training} holds {x.benchmark}: {x.words!r}" for x in found]


def _check_demonstrations(config: RunConfig, rows: DemonstrationSet, model: Model, rule: Judge, report: Report) -> None:
    shown = [rows.sample(n, "check") for n in range(len(rows))]
    form = config.reward.answer_format
    outcomes = rule([rule_row(without_tool_output(sample.text), "", config.reward) for sample in shown])
    stating = [bool(o.value and o.value["parsed"]) for o in outcomes]
    share = sum(map(formed, shown, stating)) / len(shown)
    fact = f"{share:.0%} of {len(shown)} demonstrations state an answer as reward.answer_format: {form} asks"
    (report.facts if share > 0.9 else report.warnings).append(fact)
    if long := sum(len(sample.output_ids) > config.rollout.max_new_tokens for sample in shown):
        limit = config.rollout.max_new_tokens
        report.warnings.append(
            f"{long} demonstrations are longer than rollout.max_new_tokens: {limit}; the policy cannot finish such"
        )
    longest = max(len(sample.prompt_ids) + len(sample.output_ids) for sample in shown)
    if longest > model.positions:
        found = f"the longest has {longest} tokens with its prompt"
        report.problems.append(f"data.demonstrations: {found}; expected at most the model's {model.positions}")


def _check_disk(config: RunConfig, model: Model, report: Report) -> None:
    trained, reference = held_parameters(config, model.size)
    size = BYTES_PER_PARAMETER * trained + 4 * reference
    # Besides: the best one, one more while it is written, and one while it is copied elsewhere.
    needed = size * (config.keep_checkpoints + 2 + (config.mirror is not None))
    free = shutil.disk_usage(_existing(config.output)).free
    sizes = f"checkpoints: {size / 1e9:.2g} GB each, {needed / 1e9:.2g} GB at most, {free / 1e9:.3g} GB free"
    (report.facts if needed < free else report.problems).append(sizes + ("" if needed < free else "; expected room for them"))


def _check_room(config: RunConfig, model: Model, report: Report) -> None:
    """Where the roles go on this machine, and on CPUs their memory; a cluster elsewhere is asked when the run connects."""
    gpus = gpus_here()
    if gpus is None:
        return
    cores = len(os.sched_getaffinity(0))
    try:
        roles = bundles(config, cpus=[cores], gpus=gpus)
        fit(roles, {"this machine": Node(resources={"CPU": cores, "GPU": gpus})})
    except PlacementError as error:
        report.problems.append(str(error))
        return
    counts = Counter((b.role, b.gpus) for b in roles)
    each = ", ".join(f"{role} {n}" + (f" ({share:g} GPU each)" if share else "") for (role, share), n in counts.items())
    shared = "" if gpus else f", in turns on {cores} core{'s' * (cores > 1)}"
    report.facts.append(f"placement: {each} on this machine{shared}")
    if gpus:
        _check_gpu_memory(config, model, report)
        return
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    needed = demands(config, model.size, on_cpu(shape_of(model.shape), config.learner, longest))
    report.problems += too_many(needed, cores, "this machine")
    (asked, words), here = memory(needed), memory_here()
    if asked <= here:
        report.facts.append(f"{words}, of {here / 1e9:.3g} GB")
    else:
        report.problems.append(f"{words}, and this machine has {here / 1e9:.3g} GB; expected fewer or smaller ones")


def _check_gpu_memory(config: RunConfig, model: Model, report: Report) -> None:
    """What a learner rank and an engine take of one of this machine's GPUs, as `cohort plan` counts it."""
    here = gpu_memory_here()
    for role, parts in of_recipe(config, shape_of(model.shape), here).items():
        fact, needed = f"memory of a GPU: {role} {in_words(parts)} of {here / 1e9:.3g} GB", sum(parts.values())
        (report.facts if needed <= here else report.warnings).append(fact)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
