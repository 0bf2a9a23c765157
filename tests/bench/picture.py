"""Pictures of what benchmarks measured."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Points = Sequence[tuple[float, float]]

# Of a palette that colour-blind readers can tell apart (Okabe and Ito).
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")


def draw(series: Mapping[str, Sequence[float]], file: Path, title: str) -> None:
    """Draw a line for each series, a point a second, each named at its mean; the ending of `file` says which format."""
    figure, (axes,) = _figure(1, (9, 4))
    for (name, values), colour in zip(series.items(), COLOURS, strict=False):
        axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.5)
        level = statistics.mean(values[-len(values) // 3 :])
        axes.annotate(name, (len(values), level), (6, 0), textcoords="offset points", color=colour, va="center")
    axes.set(title=title, xlabel="seconds", xlim=(0, max(map(len, series.values()))), ylim=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    _save(figure, file)


def draw_panels(panels: Mapping[str, Mapping[str, Points]], file: Path, title: str, label: str) -> None:
    """Draw a panel beside the other for each of `panels`, a line for each of its series, on one logarithmic scale."""
    figure, all_axes = _figure(len(panels), (9, 4))
    figure.suptitle(title)
    for axes, (name, series) in zip(all_axes, panels.items(), strict=True):
        for (way, points), colour in zip(series.items(), COLOURS, strict=False):
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.5, marker=".", label=way)
        axes.set(title=name, xlabel=label, yscale="log")
    all_axes[0].set_ylabel("us")
    all_axes[0].yaxis.set_major_formatter("{x:,.0f}")
    figure.legend(
        *all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(panels), frameon=False
    )
    _save(figure, file)


def _figure(columns: int, size: tuple[int, int]) -> tuple[Any, Sequence[Any]]:
    import matplotlib as mpl  # noqa: PLC0415 (of the extra `bench`, which a benchmark without a picture does without)
    from matplotlib.figure import Figure  # noqa: PLC0415

    # Text stays text, and the same numbers give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "twctl", "font.family": "sans-serif"})
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, columns, sharey=True, squeeze=False)[0]


def _save(figure: Any, file: Path) -> None:  # noqa: ANN401 - matplotlib need not be installed
    for axes in figure.axes:
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
