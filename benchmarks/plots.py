"""One plot a study: means with their standard errors over the seeds."""

from pathlib import Path

import matplotlib
from matplotlib import pyplot

matplotlib.use("Agg")
AXES = {
    "figure5": ("questions seen", "held-out accuracy"), "figure6": ("iterations", "held-out accuracy"),
    "figure7": ("K", "held-out accuracy"), "noise": ("share of flipped rewards", "held-out accuracy"),
    "transfer": ("operations in a question", "held-out accuracy"),
    "lora": ("questions seen", "held-out accuracy"), "staleness": ("max_staleness in steps", "gain in held-out accuracy"),
}  # fmt: skip
BARS = {"rows": "gain in held-out accuracy over the warm start", "judges": "accuracy on held-out outputs"}


def draw(study: str, data: dict, path: Path) -> None:
    if study == "overoptimisation":
        figure = _rewards(data)
    else:
        figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
        if study in BARS:
            means, errors = ([d[key] for d in data.values()] for key in ("mean", "standard_error"))
            axes.barh(list(data), means, xerr=errors, capsize=3)
            axes.set_xlabel(BARS[study])
        else:
            for label, points in data.items():
                _line(axes, points, label)
            axes.set(xlabel=AXES[study][0], ylabel=AXES[study][1])
            axes.legend(fontsize=8)
        if study == "figure7":
            axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _line(axes, points, label: str, **style) -> None:
    x, mean, error = zip(*points, strict=True)
    axes.errorbar(x, mean, yerr=error, marker="o", capsize=3, label=label, **style)


def _rewards(data: dict):
    """A panel for each kind of run: the model's reward on the left axis, the true accuracy on the right."""
    kinds = list(dict.fromkeys(name.partition(":")[0] for name in data))
    figure, panels = pyplot.subplots(2, len(kinds) // 2, figsize=(10, 7), layout="constrained")
    for kind, axes in zip(kinds, panels.flat, strict=True):
        for side, name, color in ((axes, "the model's reward", "C1"), (axes.twinx(), "true accuracy", "C0")):
            _line(side, data[f"{kind}: {name}"], name, color=color)
            side.set_ylabel(name, color=color)
        axes.set(title=kind, xlabel="step")
        axes.grid(alpha=0.3)
    return figure
