"""`cohort plan`: what a recipe needs of a cluster, and how fast it would be there. Starts nothing, and needs no GPU."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.ends import home, wrong_input

if TYPE_CHECKING:
    from cluster.config.run_config import RunConfig
    from cluster.planning.fit import Cluster
    from cluster.planning.plan import Estimate, Planner

app = typer.Typer()
GB = 1e9


@app.command()
@wrong_input()
def plan(
    recipe: Annotated[Path, typer.Argument(callback=home, metavar="RECIPE", help="A YAML recipe; see deploy/recipes.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As for `cohort train`.")] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="NxKIND", help="Of a node, as 8xH100; by default this machine's cores.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes.")] = 1,
    price: Annotated[float | None, typer.Option(min=0.0, help="Of a GPU for an hour, for the cost of the stage.")] = None,
    run: Annotated[
        Path | None, typer.Option(callback=home, metavar="RUN", help="A run, whose outputs' lengths are taken.")
    ] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=1, help="Mean; else half of data.max_prompt_tokens.")] = None,
    output_tokens: Annotated[float | None, typer.Option(min=1, help="Mean; else half of rollout.max_new_tokens.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Memory, seconds of a step, best split between engines and learner, and cost, of a recipe on hardware you do not have."""
    from cluster.config.run_config import load
    from cluster.planning.plan import Planner
    from cluster.planning.shapes import shape_of_recipe
    from cluster.planning.workload import lengths_of_recipe, lengths_of_run, stage_of, workload_of

    config, cluster = load(recipe, overrides), _cluster(gpus, nodes)
    stage, limit = stage_of(config), config.rollout.max_new_tokens
    if run is not None and (prompt_tokens or output_tokens):
        raise ValueError("--run: given with --prompt-tokens or --output-tokens; expected one of them")
    lengths = lengths_of_recipe(config, prompt_tokens, output_tokens) if run is None else lengths_of_run(run, stage.name, limit)
    planner = Planner(shape_of_recipe(config), workload_of(config, stage, lengths), cluster)
    estimates, best = _estimates(config, planner)
    if as_json:
        typer.echo(json.dumps(_facts(planner, estimates, best, stage.name, price), indent=1))
    else:
        _show(config, planner, estimates, best, price)


def _cluster(gpus: str | None, nodes: int) -> "Cluster":
    from cluster.planning.fit import Cluster
    from cluster.planning.hardware import parse_gpus, this_machine

    if gpus is None:
        if nodes > 1:
            raise ValueError(f"--nodes: {nodes}, without --gpus; expected what a node has, as in --gpus 8xH100")
        return Cluster(device=this_machine(), per_node=1)
    device, count = parse_gpus(gpus)
    return Cluster(device=device, per_node=count, nodes=nodes)


def _estimates(config: "RunConfig", planner: "Planner") -> "tuple[list[Estimate], Estimate]":
    """The recipe's own layout where it fits, and the best of each way to work; and of all the one to take."""
    from cluster.fleet.bundles import shares_gpus
    from cluster.planning.fit import Layout, shortage
    from cluster.planning.plan import choice

    workers, size, ranks = config.rollout.workers, config.rollout.tensor_parallel_size, config.learner.ranks
    written = Layout(engines=workers, tensor_parallel=size, ranks=ranks, shared=shares_gpus(config))
    if planner.cluster.device.is_cpu:
        return [own := planner.estimate(written)], own
    found = planner.best()
    fits = ranks and written.devices <= planner.cluster.devices
    if fits and not shortage(planner.shape, planner.work, written, planner.cluster.device):
        return [planner.estimate(written), *found], choice(found)
    return found, choice(found)


def _show(config: "RunConfig", planner: "Planner", estimates: "list[Estimate]", best: "Estimate", price: float | None) -> None:
    """The plan as lines and a table with a column for each way to work; narrow, so that a log holds it too."""
    from rich.console import Console
    from rich.table import Table

    from cluster.planning.workload import stage_of

    console = Console(highlight=False, soft_wrap=True)
    for line in _inputs(planner, stage_of(config).name):
        console.print(line)
    table = Table("", box=None, pad_edge=False)
    for one in estimates:
        table.add_column(one.mode, justify="right", no_wrap=True, style="bold" if one is best else None)
    for head, *cells in zip(*(_column(planner, one, price) for one in estimates), strict=True):
        table.add_row(head[0], *(cell[1] for cell in (head, *cells)))
    console.print(table)
    for line in _outcome(config, planner, best):
        console.print(line)


def _column(planner: "Planner", one: "Estimate", price: float | None) -> list[tuple[str, str]]:
    layout, course, work = one.layout, one.course, planner.work
    rows = [
        ("engines x GPUs of each", f"{layout.engines} x {layout.tensor_parallel}"),
        ("learner ranks", f"{layout.ranks}"),
        ("outputs at once", f"{one.requests}"),
        *((f"{name}, s", f"{seconds:.3g}") for name, seconds in one.phases.items()),
        ("step, s", f"{one.seconds:.3g}"),
        ("learner waits, s", f"{course.waiting:.3g}"),
        ("engines, learner busy", f"{course.rollout_busy:.0%}, {course.learner_busy:.0%}"),
        ("samples/s", f"{work.samples / one.seconds:.3g}"),
    ]
    return rows if price is None else [*rows, ("cost of the stage", f"{one.dollars(work, planner.cluster, price):,.2f}")]


def _inputs(planner: "Planner", stage: str) -> list[str]:
    """What the figures are made of."""
    work, shape, cluster = planner.work, planner.shape, planner.cluster
    device, lengths, dtype = cluster.device, work.lengths, work.learner.compute_dtype
    many = "" if device.is_cpu else f"{cluster.nodes} x {cluster.per_node} x "
    links = "" if device.is_cpu else f", links {device.link / GB:.0f} and between nodes {device.network / GB:.0f} GB/s"
    peaks = f"{device.narrow / 1e12:.3g} TFLOP/s bf16, {device.wide / 1e12:.3g} fp32"
    updates = f", {work.updates} updates" * (work.updates > 1)
    return [
        f"stage {stage}: {work.questions} questions x {work.group} outputs a step{updates}, {work.steps} steps",
        f"model: {shape.parameters / 1e6:.4g} M parameters, {shape.cached(2) / 1e3:.3g} kB of cache a token in bfloat16",
        f"tokens: prompts {lengths.prompt:.0f}, outputs {lengths.output:.0f}, at most {lengths.limit} ({lengths.source})",
        f"hardware: {many}{device.name}: {peaks}, of which {device.reached.products[dtype]:.0%} in {dtype}; "
        f"{device.memory / GB:.3g} GB at {device.bandwidth / GB:.4g} GB/s{links}",
    ]


def _outcome(config: "RunConfig", planner: "Planner", best: "Estimate") -> list[str]:
    """Memory of the chosen layout, and how a recipe asks for it."""
    from cluster.fleet.demand import Size, demands, memory
    from cluster.planning.memory import in_words, on_cpu
    from cluster.planning.workload import stage_of

    if planner.cluster.device.is_cpu:
        longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
        adapter = planner.shape.adapter(config.learner.lora.rank) if config.learner.lora else 0
        teacher = planner.work.teacher.parameters if planner.work.teacher else 0
        size = Size(parameters=planner.shape.parameters, adapter=adapter, teacher=teacher)
        needed = demands(config, size, on_cpu(planner.shape, config.learner, longest))
        return [f"{memory(needed)[1]}, of {planner.cluster.device.memory / GB:.3g} GB"]
    of = f"of {planner.cluster.device.memory / GB:.3g} GB"
    lines = [f"memory of a GPU: {role} {in_words(parts)} {of}" for role, parts in best.memory.items()]
    if planner.work.judged_by and not planner.work.reward_gpus:
        lines.append("not counted: the reward model scores on CPUs, of unknown speed; reward.model.gpus_per_worker")
    return [*lines, f"take: {' '.join(best.overrides(stage_of(config).name))}"]


def _facts(planner: "Planner", estimates: "list[Estimate]", best: "Estimate", stage: str, price: float | None) -> dict:
    work, rows = planner.work, []
    for one in estimates:
        row = asdict(one) | {"seconds": one.seconds, "samples_per_second": work.samples / one.seconds, "best": one is best}
        rows.append(row | ({} if price is None else {"cost": one.dollars(work, planner.cluster, price)}))
    lengths = {"prompt": work.lengths.prompt, "output": work.lengths.output, "limit": work.lengths.limit}
    inputs = {"model": asdict(planner.shape), "tokens": lengths, "cluster": asdict(planner.cluster)}
    return {"stage": stage, **inputs, "estimates": rows, "take": best.overrides(stage)}
