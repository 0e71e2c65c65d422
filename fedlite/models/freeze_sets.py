"""Named freeze sets: which parameters of a model FedPT leaves at their random initialisation.

Sidahmed et al. 2021 (arXiv 2110.03450) freeze by the names of layers; which sets their tables have
was not at hand. These go from little to nearly everything, and norms are always trained. The
patterns are those of the method `partial_training`; the counts are tested.
"""

from fedlite.errors import UserError

# Model: set: patterns on whole paths of what is frozen, largest trained part first.
FREEZE_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    # 1,206,590 with 62 outputs: dense1 leaves 26,814 (45.0x), conv1+dense1 26,494 (45.5x).
    "emnist_cnn": {
        "convolutions": (r"conv\d/.*",),
        "dense1": ("dense1/.*",),
        "conv1+dense1": ("conv1/.*", "dense1/.*"),
        "all but logits": (r"conv\d/.*", "dense1/.*"),
    },
    # 1,690,046 with 62 outputs: dense1 leaves 83,902 (20.1x).
    "emnist_fedavg_cnn": {
        "convolutions": (r"conv\d/.*",),
        "dense1": ("dense1/.*",),
        "conv1+dense1": ("conv1/.*", "dense1/.*"),
        "all but logits": (r"conv\d/.*", "dense1/.*"),
    },
    # 11,181,642 with 10 outputs: 343,626 (32.5x), 196,170 (57x), 171,594 (65x), 14,730 (759x).
    "resnet18_gn": {
        "stages 2-4": (r"stage[2-4]_block\d/conv\d/.*",),
        "all stages": (r"stage\d_block\d/conv\d/.*",),
        "stages 2-4 and shortcuts": (r"stage[2-4]_block\d/(conv\d|shortcut_conv)/.*",),
        "all convolutions": (r"stem_conv/.*", r"stage\d_block\d/(conv\d|shortcut_conv)/.*"),
    },
    "word_transformer": {
        "feed-forward": (r"layer\d+/ffn\d/.*",),
        "feed-forward and attention": (r"layer\d+/(ffn\d|attention)/.*",),
        "all but embedding": (r"layer\d+/(ffn\d|attention)/.*", r"(in|out)_projection/.*"),
        "all but norms and projections": (r"layer\d+/(ffn\d|attention)/.*", "embed/.*"),
    },
    "char_transformer": {
        "feed-forward": (r"layer\d+/ffn\d/.*",),
        "attention": (r"layer\d+/attention/.*",),
        "ffn1 and queries, keys": (r"layer\d+/(ffn1|attention/(query|key))/.*",),
        "feed-forward and attention": (r"layer\d+/(ffn\d|attention)/.*",),
        "all but norms and embedding": (
            r"layer\d+/(ffn\d|attention)/.*",
            r"(in|out)_projection/.*",
        ),
    },
    "word_lstm": {
        "recurrent": (r"lstm\d/recurrent/.*",),
        "lstm": (r"lstm\d/.*",),
        "embedding and lstm": ("embed/.*", r"lstm\d/.*"),
    },
    "char_lstm": {
        "recurrent": (r"lstm\d/recurrent/.*",),
        "lstm2": ("lstm2/.*",),
        "lstm1 and recurrent": ("lstm1/.*", "lstm2/recurrent/.*"),
        "lstm": (r"lstm\d/.*",),
        "all but logits": ("embed/.*", r"lstm\d/.*"),
    },
}


def freeze_rules(model: str, name: str) -> tuple[tuple[str, bool], ...]:
    """The option `partial_training.freeze` of a set.

    Args:
      model: name of a model.
      name: of one of its sets; "none" freezes nothing.

    Raises:
      UserError: there is no such set.
    """
    if name == "none":
        return ()
    sets = FREEZE_SETS.get(model, {})
    if name not in sets:
        raise UserError(
            f"no freeze set {name!r} of model {model!r}: use {', '.join(('none', *sets))}, or "
            "patterns of your own"
        )
    return tuple((pattern, True) for pattern in sets[name])
