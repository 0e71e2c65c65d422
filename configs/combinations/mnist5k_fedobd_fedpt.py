"""FedOBD over what FedPT trains, on 4,000 MNIST digits and a narrow ResNet-18.

    python -m experiments.train --config=configs/combinations/mnist5k_fedobd_fedpt.py --workdir=DIR

The 3x3 convolutions of the last two stages stay random, and of the blocks that are left those that
changed most are uploaded, quantised. 49,274 of 263,546 parameters are trained and sent; block
dropout and quantisation come on top. The rest as of configs/fedobd/mnist5k_resnet.py.
"""

from configs.fedobd import mnist5k_resnet


def get_config():
    """The config."""
    config = mnist5k_resnet.get_config()
    config.method = "partial_training+quantize+fedobd"
    config.partial_training.freeze = ((r"stage[34]_block\d/conv\d/.*", True),)
    return config
