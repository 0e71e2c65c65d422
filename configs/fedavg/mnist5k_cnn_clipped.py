"""FedAvg with clipped updates on 4,000 MNIST digits, 100 clients by Dirichlet(0.5), EMNIST CNN.

    python -m experiments.train --config=configs/fedavg/mnist5k_cnn_clipped.py --workdir=DIR

A client's update has an L2 norm of at most 1, and clients weigh the same: what bounding each one's
influence costs by itself, without the noise that privacy takes.
"""

from configs.fedavg import mnist5k_cnn


def get_config():
    """The config."""
    config = mnist5k_cnn.get_config()
    config.method = "clip"
    config.clip.norm = 1.0
    return config
