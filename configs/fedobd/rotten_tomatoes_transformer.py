"""FedOBD on Rotten Tomatoes, 200 clients, a Transformer of two layers.

    python -m experiments.train --config=configs/fedobd/rotten_tomatoes_transformer.py --workdir=DIR

385,213 parameters in four blocks: the embedding of 2,004 words is 52 %, a layer 24 %. The split is
IID, as the paper's; `--config.dataset.partition=natural --config.dataset.clients=0` has a client a
film. Attention and mean leave padding out. Dropout rate and beta are the paper's. The server's Adam
is not (under plain FedAvg nothing is learned in so few rounds); without pretrained vectors some
10,000 sentences teach little.
"""

from configs import common
from configs.fedobd import use_fedobd


def get_config():
    """The config."""
    config = common.base(
        "rotten_tomatoes",
        "transformer_classifier",
        "fedavg",
        dataset_options={
            "partition": "iid",
            "clients": 200,
            "vocabulary_size": 2000,
            "sequence_length": 30,
        },
        model_options={"vocabulary_size": 2004, "ffn": 256},
    )
    use_fedobd(config, stage1=100, stage2=1, beta=0.001)
    config.clients_per_round = 20
    config.local_epochs = 2
    config.batch_size = 10
    config.client_optimizer.learning_rate = 0.1
    config.client_optimizer.clip = 1.0
    config.server_optimizer.name = "adam"
    config.server_optimizer.learning_rate = 0.01
    return config
