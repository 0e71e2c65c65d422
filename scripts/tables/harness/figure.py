"""Draws a metric against the megabytes that were moved, a line a row with a band over seeds."""

import math
import pathlib
from collections.abc import Sequence

from scripts.tables.harness.results import Curve
from scripts.tables.harness.spec import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":")


def draw(figure: Figure, curves: Sequence[Curve], title: str, stem: pathlib.Path):
    """Writes STEM.png and STEM.pdf.

    Args:
      figure: what the axes are.
      curves: a line each; its band is one standard deviation to either side.
      title: above it.
      stem: path without a suffix.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    settings = {
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        # Text, not outlines, so that the PDF can be searched.
        "pdf.fonttype": 42,
    }
    with pyplot.rc_context(settings):
        canvas, axes = pyplot.subplots(figsize=(5.5, 4))
        for i, curve in enumerate(curves):
            color = _COLORS[i % len(_COLORS)]
            style = _STYLES[i // len(_COLORS) % len(_STYLES)]
            low = [mean - sd for mean, sd in zip(curve.mean, curve.deviation)]
            high = [mean + sd for mean, sd in zip(curve.mean, curve.deviation)]
            axes.fill_between(curve.megabytes, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(
                curve.megabytes,
                curve.mean,
                style,
                color=color,
                linewidth=2,
                marker="o",
                markevery=[-1],
                label=curve.label,
            )
        axes.set_xscale("log")
        # Powers of ten alone would leave a short axis with one number.
        steps = (1, 2, 5) if _decades(curves) < 2 else (1,)
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=steps))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.set_xlabel("Moved by all clients, both ways (MB, log scale)")
        axes.set_ylabel(figure.label)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.set_title(title, loc="left", fontsize=12)
        if curves:
            axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
        # The page is as wide as the labels need, and the axes stay as they are. No date or version
        # in the files, so that equal numbers give equal files.
        canvas.savefig(f"{stem}.png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        canvas.savefig(f"{stem}.pdf", bbox_inches="tight", metadata={"CreationDate": None})
        pyplot.close(canvas)


def _decades(curves: Sequence[Curve]) -> float:
    """Powers of ten that the curves span."""
    moved = [value for curve in curves for value in curve.megabytes if value > 0]
    return math.log10(max(moved) / min(moved)) if moved else 0.0
