"""Adapters on 4,000 MNIST digits, 100 clients by Dirichlet(0.5), a small ResNet-26.

    python -m experiments.pretrain --config=configs/adapters/mnist5k_resnet.py:pretrain \
        --workdir=BACKBONE --epochs=10
    python -m experiments.train --config=configs/adapters/mnist5k_resnet.py --workdir=DIR \
        --config.backbone.path=BACKBONE

The first command trains the backbone on glyphs (62 characters from typefaces), the second sends it
to every client once, frozen, and then a 1x1 convolution beside every 3x3 one, the norms
and a fresh head: 78,650 of 756,170 parameters are trained and sent, 88.4 % less than the backbone
and its head. Without a backbone the frozen part is random. With
configs/adapters/mnist5k_resnet.py:full all is trained, without adapters; with :head the head alone.
"""

from configs import common
from fedlite.errors import UserError

SMALL = {
    "stem_width": 16,
    "stage_widths": (32, 64, 128),
    "stage_blocks": (2, 2, 2),
    "group_size": 8,
}
TRAINED = {"adapters": r"adapters/.*|.*norm\d?/.*|logits/.*", "head": r"logits/.*"}


def get_config(what: str = "adapters"):
    """The config: "adapters", "full", "head", or "pretrain" for the backbone."""
    if what not in ("adapters", "full", "head", "pretrain"):
        raise UserError(
            f"{what!r} is no variant of this config: use adapters, full, head, pretrain"
        )
    if what == "pretrain":
        return common.base("glyphs", "resnet26", "fedavg", model_options=SMALL)
    config = common.base("mnist5k", "resnet26", "fedavg", model_options=SMALL)
    config.rounds = 100
    # The backbone's classes are other ones.
    config.backbone.skip = r"adapters/.*|logits/.*"
    config.local_epochs = 2
    # With the backbone frozen, larger steps are stable.
    config.client_optimizer.learning_rate = 0.1 if what in TRAINED else 0.05
    config.client_optimizer.clip = 1.0
    config.server_optimizer.name = "momentum"
    if what == "adapters":
        config.adapters = {
            "kind": "parallel",
            "places": ((r"stem_conv|.*/conv\d", 0),),
            "init": "zero",
        }
    if what in TRAINED:
        config.method = "partial_training"
        config.partial_training.freeze = ((TRAINED[what], False), (".*", True))
        config.partial_training.origin = "sent"
    return config
