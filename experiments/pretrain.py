"""Trains a backbone centrally, on the pooled training examples of a config's data set.

    python -m experiments.pretrain --config=configs/fedavg/glyphs_cnn.py --workdir=DIR \
        [--epochs=10 --optimizer=adam ...] [--config.model.conv1=16 ...]

Of the config it reads the data set, the model, the task and the seed; nothing of it is federated.
DIR then holds a backbone, params.npz and backbone.json, which an experiment names by
--config.backbone.path=DIR. Bad input exits with 2 before anything is compiled or written. A run
that was stopped begins again.
"""

import dataclasses
import functools
import time

from absl import app, flags

from experiments import binary

_CONFIG = binary.define_config()
_WORKDIR = binary.define_workdir()
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Passes over the training examples.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Examples of a step.", lower_bound=1)
_OPTIMIZER = flags.DEFINE_enum("optimizer", "adam", ["adam", "sgd"], "Of the central training.")
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 1e-3, "Of the first step; falls to 0 along a cosine.", lower_bound=0
)
_MOMENTUM = flags.DEFINE_float("momentum", 0.9, "Of sgd.", lower_bound=0, upper_bound=0.9999999)
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.0, "Decoupled.", lower_bound=0)


@dataclasses.dataclass(frozen=True)
class Options:
    """How a backbone is trained.

    Attributes:
      epochs: passes over the examples, each in a new order; the last batch is left out where it
        would be smaller.
      batch_size: examples of a step; at most all.
      optimizer: "adam" or "sgd".
      learning_rate: of the first step; it falls to 0 along a cosine.
      momentum: of sgd.
      weight_decay: decoupled from the gradient's moments (AdamW, SGDW).
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0

    def make(self, steps: int):
        """The optax optimiser of a run of so many steps."""
        import optax

        scale = (
            optax.scale_by_adam()
            if self.optimizer == "adam"
            else optax.trace(self.momentum)
            if self.momentum
            else optax.identity()
        )
        return optax.chain(
            scale,
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(optax.cosine_decay_schedule(self.learning_rate, steps)),
        )


def train(task, params, split, options: Options, seed: int, report=print):
    """Trains a model centrally.

    Args:
      task: of `fedlite.tasks`.
      params: to begin from, by path.
      split: whose examples are pooled.
      options: of the training.
      seed: of the order of examples and of dropout.
      report: called with a line after each epoch.

    Returns:
      The trained parameters by path.

    Raises:
      UserError: the loss is not finite.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from fedlite.errors import UserError
    from fedlite.federated import statistics

    size = min(options.batch_size, split.num_examples)
    steps = split.num_examples // size
    optimizer = statistics.apart(options.make(options.epochs * steps))
    arrays = {name: jnp.asarray(array) for name, array in split.arrays.items()}
    mask = jnp.ones(size)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def epoch(params, opt_state, arrays, key):
        order_key, step_key = jax.random.split(key)
        order = jax.random.permutation(order_key, split.num_examples)[: steps * size]

        def step(carry, xs):
            params, opt_state = carry
            rows, key = xs
            batch = {name: array[rows] for name, array in arrays.items()}
            loss, gradients = jax.value_and_grad(task.loss)(params, batch, mask, key)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        xs = order.reshape(steps, size), jax.random.split(step_key, steps)
        (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), xs)
        return params, opt_state, losses.mean()

    # A copy, since an epoch donates its input.
    params = jax.tree.map(jnp.array, dict(params))
    opt_state, key = optimizer.init(params), jax.random.key(seed)
    for number in range(1, options.epochs + 1):
        begin = time.perf_counter()
        params, opt_state, loss = epoch(params, opt_state, arrays, jax.random.fold_in(key, number))
        if not np.isfinite(loss):
            raise UserError(f"epoch {number}: the loss is not finite; lower --learning_rate")
        seconds = time.perf_counter() - begin
        report(f"epoch {number} of {options.epochs}: loss {float(loss):.4f}, {seconds:.1f} s")
    return jax.tree.map(np.asarray, params)


def main(_):
    """Trains and saves the backbone of the flags."""
    binary.require(config=_CONFIG.value, workdir=_WORKDIR.value)
    from experiments.build import build
    from fedlite.federated.evaluation import Evaluator
    from fedlite.models import backbone

    binary.start_jax()
    backbone.check_new(_WORKDIR.value)
    experiment = build(_CONFIG.value)
    options = Options(
        epochs=_EPOCHS.value,
        batch_size=_BATCH_SIZE.value,
        optimizer=_OPTIMIZER.value,
        learning_rate=_LEARNING_RATE.value,
        momentum=_MOMENTUM.value,
        weight_decay=_WEIGHT_DECAY.value,
    )
    split = experiment.dataset.splits["train"]
    params = train(experiment.task, experiment.init_params(), split, options, experiment.seed)
    metrics = Evaluator(experiment.task, experiment.dataset.splits["test"])(params)
    metric = experiment.task.metric.name
    metrics = {name: metrics[name] for name in (metric, "loss")}
    facts = {
        "config": {name: experiment.config[name] for name in ("dataset", "model", "task", "seed")},
        "training": dataclasses.asdict(options),
        "test": metrics,
    }
    saved = backbone.save(_WORKDIR.value, params, facts)
    print(
        f"{experiment.names['model']} on {experiment.names['dataset']}: {metric} "
        f"{metrics[metric]:.4f}, digest {saved['digest'][:16]}, in {_WORKDIR.value}"
    )


if __name__ == "__main__":
    app.run(binary.guarded(main), flags_parser=binary.parse_flags)
