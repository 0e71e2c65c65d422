"""Adapters on digits of three sources, 30 clients of one source each (feature skew).

    python -m experiments.train --config=configs/adapters/digit_domains_resnet.py --workdir=DIR \
        --config.backbone.path=BACKBONE

The backbone and all but the data are those of configs/adapters/mnist5k_resnet.py, with its variants
:full and :head. 78,650 of 756,170 parameters are trained and sent.
"""

from configs import common
from configs.adapters import mnist5k_resnet
from fedlite.errors import UserError


def get_config(what: str = "adapters"):
    """The config: "adapters", "full" or "head"."""
    if what not in ("adapters", "full", "head"):
        raise UserError(f"{what!r} is no variant of this config: use adapters, full, head")
    config = mnist5k_resnet.get_config(what)
    config.dataset = common.base("digit_domains", "resnet26", "fedavg").dataset
    return config
