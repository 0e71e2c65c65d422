"""Adapters on half of Shakespeare's plays, by role, a Transformer of two layers.

    python -m experiments.pretrain --config=configs/adapters/shakespeare_transformer.py:pretrain \
        --workdir=BACKBONE --epochs=8 --learning_rate=0.002 --batch_size=32
    python -m experiments.train --config=configs/adapters/shakespeare_transformer.py \
        --workdir=DIR --config.backbone.path=BACKBONE

The first command trains the backbone on the roles of every other play, pooled; the second adapts it
to the roles of the rest, with a bottleneck of 40 units beside attention and feed-forward of each
layer; with norms and head 46,784 of 449,408 parameters are trained and sent, 88.5 % less than the
backbone. Without a backbone the frozen part is random. With
configs/adapters/shakespeare_transformer.py:full all is trained, without adapters; with :head the
projection before the embedding, which serves as the output layer, too.
"""

from configs.fedavg import shakespeare_transformer
from fedlite.errors import UserError

TRAINED = {"adapters": r"adapters/.*|.*/norm\d/.*|out_projection/.*", "head": r"out_projection/.*"}


def get_config(what: str = "adapters"):
    """The config: "adapters", "full", "head", or "pretrain" for the backbone."""
    if what not in ("adapters", "full", "head", "pretrain"):
        raise UserError(
            f"{what!r} is no variant of this config: use adapters, full, head, pretrain"
        )
    config = shakespeare_transformer.get_config()
    config.dataset.plays = "even" if what == "pretrain" else "odd"
    if what == "pretrain":
        config.dataset.max_examples_per_client = 0
    if what == "full":
        # Larger steps undo first what the backbone knows: 0.515 in place of 0.500 at the end.
        config.server_optimizer.learning_rate = 0.002
    if what == "adapters":
        places = ((r"layer\d+/attention", 40), (r"layer\d+/ffn1>ffn2", 40))
        config.adapters = {"kind": "parallel", "places": places, "init": "zero"}
    if what in TRAINED:
        config.method = "partial_training"
        config.partial_training.freeze = ((TRAINED[what], False), (".*", True))
        config.partial_training.origin = "sent"
    return config
