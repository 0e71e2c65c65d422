"""Named schemes of per-layer dropout rates, all of one client size.

Guliani et al. 2022 (arXiv 2110.03634) let federated dropout's rate vary by layer; which schemes
they tried is not known, so the shapes are this suite's own. With x from 0 (first width) to 1 (last)
the rate is, apart from rounding to whole units,

    uniform        r
    ascending      c + spread (x - 1/2)
    descending     c - spread (x - 1/2)
    middle-heavy   c + spread (1/2 - |2 x - 1|)
    edges-heavy    c - spread (1/2 - |2 x - 1|)
    ambient        c (1 - importance)

clipped to [0, 1], and c is what gives the client the parameters that it has at the uniform rate r:
a comparison of schemes of different sizes would say nothing.
"""

from collections.abc import Mapping, Sequence

from fedlite.errors import UserError
from fedlite.models.sizes import kept_units, parameters, solve
from fedlite.models.units import Shape, UnitAxes

KINDS = ("uniform", "ascending", "descending", "middle-heavy", "edges-heavy", "ambient")


def rate_presets(
    kind: str,
    axes: UnitAxes,
    shapes: Mapping[str, Shape],
    widths: Sequence[str],
    rate: float,
    spread: float | None = None,
    importance: Mapping[str, float] | None = None,
) -> tuple[tuple[str, float], ...]:
    """The option `federated_dropout.rates` of a scheme.

    Args:
      kind: one of `KINDS`.
      axes: the model's.
      shapes: of its parameters by path.
      widths: those that are dropped, in order of depth, as in `tuple(model.widths)`.
      rate: r of the uniform scheme, which sets the size.
      spread: between the least and the greatest rate; None: min(r, 1 - r), so that nothing is
        clipped where c is near r.
      importance: of each width, in [0, 1], for "ambient": for instance the rise of the loss when
        the layer is reset to its initialisation, divided by the largest.

    Returns:
      Pairs (width, rate). The rates are whole units of their width; the sub-model has at most the
      parameters of the uniform scheme, and less than one unit's fewer.

    Raises:
      UserError: an argument is bad, or no sub-model of the scheme is so small.
    """
    totals = axes.widths(shapes)
    _check(kind, totals, widths, rate, importance)
    uniform = {width: kept_units(totals[width], rate) for width in widths}
    if kind == "uniform":
        return tuple((width, rate) for width in widths)
    spread = min(rate, 1 - rate) if spread is None else spread
    if not 0 <= spread <= 1:
        raise UserError(f"spread must be from 0 to 1, not {spread}")
    offsets = {
        width: spread * _shape(kind, index / max(len(widths) - 1, 1))
        for index, width in enumerate(widths)
    }

    def counts(c: float) -> dict[str, int]:
        rates = {
            width: c * (1 - importance[width]) if kind == "ambient" else c + offsets[width]
            for width in widths
        }
        return {w: kept_units(totals[w], min(max(r, 0.0), 1.0)) for w, r in rates.items()}

    def size(kept: Mapping[str, int]) -> int:
        return parameters(axes, shapes, kept)

    # Of "ambient", c is a factor: where all but one importance is near 1 it may be large.
    bounds = (0.0, 1e6) if kind == "ambient" else (-1.0, 2.0)
    kept = solve(counts, size, size(uniform), bounds, order=widths)
    return tuple((width, 1 - kept[width] / totals[width]) for width in widths)


def _shape(kind: str, x: float) -> float:
    """From -1/2 to 1/2, at the depth x."""
    return {
        "ascending": x - 0.5,
        "descending": 0.5 - x,
        "middle-heavy": 0.5 - abs(2 * x - 1),
        "edges-heavy": abs(2 * x - 1) - 0.5,
        "ambient": 0.0,
    }[kind]


def _check(kind, totals, widths, rate, importance):
    if kind not in KINDS:
        raise UserError(f"no rate preset {kind!r}; use one of {', '.join(KINDS)}")
    for width in widths:
        if width not in totals:
            raise UserError(f"the model has no width {width!r}; it has {', '.join(sorted(totals))}")
    if not widths or len(set(widths)) != len(widths):
        raise UserError("rate presets need the model's widths in order of depth, each once")
    if not 0 <= rate < 1:
        raise UserError(f"the uniform rate is {rate}; a rate is at least 0 and below 1")
    if kind != "ambient":
        return
    for width in widths:
        if importance is None or width not in importance or not 0 <= importance[width] <= 1:
            raise UserError(
                f"the preset ambient needs the importance of width {width!r}, from 0 to 1"
            )
