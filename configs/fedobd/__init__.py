"""FedOBD, opportunistic block dropout with quantisation, in two stages."""

import ml_collections


def use_fedobd(
    config: ml_collections.ConfigDict,
    *,
    stage1: int,
    stage2: int,
    beta: float,
    dropout: float = 0.3,
) -> ml_collections.ConfigDict:
    """Turns a config of FedAvg into one of FedOBD.

    Args:
      config: is changed.
      stage1: rounds of drawn cohorts with block dropout.
      stage2: rounds of all clients, an epoch each, without it.
      beta: of the quantiser NNADQ, both ways.
      dropout: share of the values that block dropout keeps from being sent.

    Returns:
      The config.
    """
    config.method = "quantize+fedobd"
    config.quantize.up = config.quantize.down = f"nnadq{beta}"
    config.fedobd.dropout_rate = dropout
    config.fedobd.stage1_rounds = stage1
    config.fedobd.stage2_rounds = stage2
    config.rounds = stage1 + stage2
    return config
