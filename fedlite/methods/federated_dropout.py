"""Federated dropout: each client trains a random, physically smaller sub-model.

Caldas et al. 2018 (arXiv 1812.07210), section 3; rates that differ by layer: Guliani et al.
2022 (arXiv 2110.03634). Of a width of n units at rate r a client keeps round((1 - r) n),
drawn uniformly without replacement. The draw is a function of a seed that server and client
share, so the indices cost nothing on the wire.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax

from fedlite.errors import UserError
from fedlite.methods.patterns import check_rules, first_match
from fedlite.methods.registry import register
from fedlite.methods.submodel import SubModel, width_names
from fedlite.models.normalization import refuse_trained
from fedlite.models.rate_presets import rate_presets
from fedlite.models.sizes import kept_units


@register("federated_dropout")
@dataclasses.dataclass(frozen=True)
class FederatedDropout(SubModel):
    """Random units of each width.

    Attributes:
      axes: the model's `UnitAxes`.
      shapes: shapes of the server's parameters by path.
      rates: pairs (pattern, rate): the first pattern that matches a width's whole name wins,
        and a width that none matches is kept whole.
      preset: "uniform", the rates as they stand, or another of `rate_presets.KINDS`: the widths
        that are dropped, all at one rate, share it by that scheme; the client's size stays.
      importance: pairs (pattern, importance from 0 to 1) of the widths, for the preset "ambient";
        experiments.importance measures them.
      per: "client" draws anew for every client and round, "round" once for the cohort.
      aggregation: "count" or "zero", see `SubModel`.
      rescale: whether kept units are scaled by 1 / (1 - rate), see `SubModel`.
    """

    axes: Any
    shapes: Mapping[str, tuple[int, ...]]
    rates: tuple[tuple[str, float], ...] = ((".*", 0.5),)
    preset: str = "uniform"
    importance: tuple[tuple[str, float], ...] = ()
    per: str = "client"
    aggregation: str = "count"
    rescale: bool = False

    def __post_init__(self):
        self._check()
        if self.per not in ("client", "round"):
            raise UserError(f"federated_dropout.per must be client or round, not {self.per!r}")
        check_rules(self.rates, width_names(self.axes), "federated_dropout.rates", (int, float))
        for pattern, rate in self.rates:
            if not 0 <= rate < 1:
                raise UserError(
                    f"federated_dropout.rates: {pattern!r} has the rate {rate}; a rate is at "
                    "least 0 and below 1"
                )
        if self.importance:
            what = "federated_dropout.importance"
            check_rules(self.importance, width_names(self.axes), what, (int, float))
        # A preset that cannot be is refused now.
        _ = self.rates_by_layer

    @functools.cached_property
    def rates_by_layer(self) -> tuple[tuple[str, float], ...]:
        """`rates` after the preset: pairs (pattern, rate).

        Raises:
          UserError: the widths that are dropped have several rates, or `rate_presets` refuses.
        """
        if self.preset == "uniform":
            return self.rates
        rates = {name: first_match(self.rates, name, 0.0) for name in width_names(self.axes)}
        # In order of depth: block2 before block10.
        dropped = sorted((name for name, rate in rates.items() if rate), key=_natural)
        if len({rates[name] for name in dropped}) != 1:
            raise UserError(
                f"federated_dropout.preset {self.preset} shares one rate among widths; give them "
                "one in federated_dropout.rates, or take the preset uniform"
            )
        marked = {name: first_match(self.importance, name, None) for name in dropped}
        known = {name: value for name, value in marked.items() if value is not None}
        return tuple(
            (re.escape(name), rate)
            for name, rate in rate_presets(
                self.preset, self.axes, self.shapes, dropped, rates[dropped[0]], importance=known
            )
        )

    def select(self, state, mine, keys, view):
        """The sub-model; running statistics of sub-models would not be those of the whole."""
        if any(rate for _, rate in self.rates_by_layer):
            refuse_trained(view.trained, "federated_dropout")
        return super().select(state, mine, keys, view)

    def units(self, state, keys, widths):
        """The head of a random permutation of each width."""
        key = getattr(keys, self.per)
        return {
            width: jax.random.permutation(jax.random.fold_in(key, index), total)[
                : kept_units(total, first_match(self.rates_by_layer, width, 0.0))
            ]
            for index, (width, total) in enumerate(sorted(widths.items()))
        }


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which numbers within names count as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
