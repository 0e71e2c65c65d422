"""A config at a size that takes seconds: for tests, and to try a table before hours of it.

The method, and every kind of layer and of data, stay what they are.
"""

from typing import Any

import ml_collections

CLIENTS = 4
EXAMPLES = 4
# Options of data sets, wherever a data set has one of this name.
_DATASET = {
    "clients": CLIENTS,
    "max_clients": CLIENTS,
    "examples_per_client": 2 * EXAMPLES,
    "speakers": CLIENTS,
    "validation_speakers": 1,
    "test_speakers": 2,
    "utterances": EXAMPLES,
    "max_examples_per_client": EXAMPLES,
    "sequence_length": 8,
    "vocabulary_size": 50,
}
_EXPERIMENT = {
    "rounds": 2,
    "clients_per_round": 2,
    "batch_size": EXAMPLES,
    "eval_every": 1,
    "checkpoint_every": 2,
}
# A model's sizes are divided by this, down to 1, or to what leaves something to drop.
_DIVISOR = 16
_LEAST = {"heads": 2}


def overrides(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Values by key that make an experiment tiny.

    Args:
      config: of `experiments.train`; it isn't changed.

    Returns:
      2 rounds of 2 clients with 4 examples each, every integer option of the model (or entry of a
      tuple of integers) divided by 16, and none of the task's buckets, each of which compiles.
    """
    sizes = {key: _divided(value, _LEAST.get(key, 1)) for key, value in config.model.items()}
    if "d_model" in sizes:
        # The heads share it.
        sizes["d_model"] += -sizes["d_model"] % sizes["heads"]
    return {
        **{key: value for key, value in _EXPERIMENT.items() if key in config},
        **{f"dataset.{key}": value for key, value in _DATASET.items() if key in config.dataset},
        **{f"model.{key}": value for key, value in sizes.items() if value is not None},
        "task.buckets": (),
        **_rules(config, sizes),
    }


def _rules(config: ml_collections.ConfigDict, sizes) -> dict[str, Any]:
    """Rules of federated dropout without those of blocks that are gone, where some are."""
    gone = [f"block{i}/" for i in range(1, config.model.get("blocks", 0) + 1)]
    gone = tuple(gone[sizes.get("blocks") or len(gone) :])
    found = {}
    for option in ("rates", "importance"):
        rules = config.get("federated_dropout", {}).get(option, ())
        left = tuple(rule for rule in rules if not rule[0].startswith(gone))
        if len(left) < len(rules):
            found[f"federated_dropout.{option}"] = left
    return found


def _divided(value, least: int):
    """The shrunk size, or None where `value` is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return max(min(least, value), value // _DIVISOR)
    if isinstance(value, tuple) and value and all(type(entry) is int for entry in value):
        return tuple(max(1, entry // _DIVISOR) for entry in value)
    return None
