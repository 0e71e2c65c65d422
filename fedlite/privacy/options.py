"""What the private methods' options have in common: their checks, and the guarantee as a dict."""

import math
from typing import Any

from fedlite.errors import UserError
from fedlite.privacy import accounting


def check(name: str, method: Any):
    """Refuses options under which the accounting would be wrong.

    Args:
      name: of the method.
      method: has the fields `population`, `weighting`, `clip`, `noise_multiplier`, `delta` and
        `epsilon`.

    Raises:
      UserError: names the option and the remedy.
    """
    clip, noise_multiplier = method.clip, method.noise_multiplier
    delta, epsilon = method.delta, method.epsilon
    if method.weighting != "uniform":
        raise UserError(
            f"{name} bounds what a client can change, so clients may not weigh as many examples "
            "as they have: set client_weighting = 'uniform'"
        )
    if not clip > 0:
        raise UserError(f"{name}.clip must be above 0, not {clip}")
    if noise_multiplier < 0 or not math.isfinite(noise_multiplier):
        raise UserError(f"{name}.noise_multiplier must be at least 0, not {noise_multiplier}")
    if epsilon < 0 or not math.isfinite(epsilon):
        raise UserError(f"{name}.epsilon must be above 0, or 0 for none, not {epsilon}")
    if math.isinf(clip) and (noise_multiplier or epsilon):
        raise UserError(f"{name}.clip is infinite, and noise has to be in proportion: take a bound")
    if not 0 <= delta < 1:
        raise UserError(f"{name}.delta must be above 0 and below 1, or 0 for the default")
    if not (delta or accounting.default_delta(method.population)) < 1 / method.population:
        raise UserError(
            f"{name}.delta = {delta} protects nobody among {method.population} clients: take less "
            "than 1 / population, of at least 2 clients"
        )


def guarantee(
    *,
    epsilon: float,
    delta: float,
    mechanism: str,
    noise_multiplier: float,
    clip: float,
    participation: str,
    adjacency: str,
    proviso: str,
) -> dict[str, Any]:
    """What `Method.privacy` answers; epsilon is None where there is no guarantee."""
    holds = math.isfinite(epsilon)
    assumptions = (
        f"user-level, central: for two populations where one client {adjacency}; {proviso}; the "
        "training metrics that are logged and the choice of hyperparameters are not accounted "
        "for; a pretrained backbone, if any, saw none of these clients' data; floating-point "
        "noise. Simulated: noise and cohorts follow from the run's seed, which must be secret "
        "where it counts (with partial_training.origin = 'seed' the clients have it)"
    )
    return {
        "epsilon": epsilon if holds else None,
        "delta": delta,
        "mechanism": mechanism,
        "noise_multiplier": noise_multiplier,
        "clip": clip if math.isfinite(clip) else None,
        "participation": participation,
        "assumptions": assumptions if holds else "no guarantee: there is no noise",
    }
