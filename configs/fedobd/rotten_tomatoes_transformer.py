"""FedOBD on Rotten Tomatoes, 200 films, a Transformer of two layers.

    python -m experiments.train --config=configs/fedobd/rotten_tomatoes_transformer.py --workdir=DIR

385,213 parameters in four blocks: the embedding of 2,004 words is 52 %, a layer 24 %. The natural
split by films; attention and mean leave padding out. Dropout rate and beta are the paper's. The
server's Adam is not (under plain FedAvg nothing is learned in so few rounds); without pretrained
vectors 4,786 sentences teach little beyond the share of good reviews, 0.578.
"""

from configs import common
from configs.fedobd import use_fedobd


def get_config():
    """The config."""
    config = common.base(
        "rotten_tomatoes",
        "transformer_classifier",
        "fedavg",
        dataset_options={"clients": 200, "vocabulary_size": 2000, "sequence_length": 30},
        model_options={"vocabulary_size": 2004, "ffn": 256},
    )
    use_fedobd(config, stage1=60, stage2=1, beta=0.001)
    config.clients_per_round = 20
    config.local_epochs = 2
    config.batch_size = 10
    config.client_optimizer.learning_rate = 0.1
    config.client_optimizer.clip = 1.0
    config.server_optimizer.name = "adam"
    config.server_optimizer.learning_rate = 0.003
    return config
