"""Adapters with FedOBD's blocks and quantiser, on 4,000 MNIST digits and a small ResNet-26.

    python -m experiments.train --config=configs/combinations/mnist5k_adapters.py --workdir=DIR \
        --config.backbone.path=BACKBONE

Adapters, norms and head are trained, 78,650 of 756,170 parameters; of their blocks those that
changed most are uploaded, quantised. Backbone and the rest: configs/adapters/mnist5k_resnet.py.
"""

from configs.adapters import mnist5k_resnet
from configs.fedobd import use_fedobd


def get_config():
    """The config."""
    config = use_fedobd(mnist5k_resnet.get_config(), stage1=100, stage2=3, beta=0.001)
    config.method = "partial_training+quantize+fedobd"
    return config
