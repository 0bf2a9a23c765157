"""A picture of what benchmarks measured second by second."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

# Of a palette that colour-blind readers can tell apart (Okabe and Ito).
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")


def draw(series: Mapping[str, Sequence[float]], file: Path, title: str) -> None:
    """Draw a line for each series, a point a second, each named at its mean; the ending of `file` says which format."""
    import matplotlib as mpl  # noqa: PLC0415 (of the extra `bench`, which a benchmark without a picture does without)
    from matplotlib.figure import Figure  # noqa: PLC0415

    # Text stays text, and the same numbers give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "twctl", "font.family": "sans-serif"})
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    for (name, values), colour in zip(series.items(), COLOURS, strict=False):
        axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.5)
        level = statistics.mean(values[-len(values) // 3 :])
        axes.annotate(name, (len(values), level), (6, 0), textcoords="offset points", color=colour, va="center")
    axes.set(title=title, xlabel="seconds", xlim=(0, max(map(len, series.values()))), ylim=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
