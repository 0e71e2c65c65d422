r"""Adapters on spoken commands by 120 made-up speakers, a small Conformer that knows digits.

    python -m experiments.pretrain --config=configs/adapters/speech_conformer.py:pretrain \
        --workdir=BACKBONE --epochs=20
    python -m experiments.train --config=configs/adapters/speech_conformer.py --workdir=DIR \
        --config.backbone.path=BACKBONE

The first command trains the backbone centrally on digit strings, the second adapts it to commands,
with a bottleneck of 16 units beside the attention and both feed-forwards of each block:
16,189 of 239,205 parameters are trained and sent, the norms and the output layer among them, as
commands have letters that no digit has. Without a backbone the frozen part is random. With
configs/adapters/speech_conformer.py:full all is trained, without adapters.
"""

from configs.fedavg import speech_conformer
from fedlite.errors import UserError


def get_config(what: str = "adapters"):
    """The config: "adapters", "full", or "pretrain" for the backbone."""
    if what not in ("adapters", "full", "pretrain"):
        raise UserError(f"{what!r} is no variant of this config: use adapters, full, pretrain")
    config = speech_conformer.get_config()
    if what == "pretrain":
        return config
    config.dataset.grammar = "commands"
    config.rounds = 100
    if what == "adapters":
        # Both read what the norm before the module gives, as the layers beside them do.
        places = ((r"block\d+/attention", 16), (r"block\d+/ffn\d/in>out", 16))
        config.adapters = {"kind": "parallel", "places": places, "init": "zero"}
        trained = r"adapters/.*|.*norm/.*|logits/.*"
        config.method = "partial_training"
        config.partial_training.freeze = ((trained, False), (".*", True))
        config.partial_training.origin = "sent"
    return config
