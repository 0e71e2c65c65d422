"""Writes a large federated population of small images, for `data.load("population")`.

    python -m scripts.make_population --clients=1000000 --out=DIR \
        [--source=mnist5k --examples_per_client=4 --alpha=0.5 --seed=0]

A million clients with 4 images of MNIST-5k each are 3.2 GB and take less than a minute; DIR needs
so much room. The files appear when they are complete: what was interrupted is begun anew by the
same command, and what is there is not written again. Prints the options by which a config finds
them. See fedlite/data/population.py.
"""

import inspect

from absl import app, flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments import binary
from fedlite.data import population

_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(population.population).parameters.items()
}

_CLIENTS = flags.DEFINE_integer("clients", None, "Their number.", 1)
_OUT = flags.DEFINE_string("out", None, "The directory to write to; it may hold several.")
_SOURCE = flags.DEFINE_enum("source", _DEFAULTS["source"], list(population.SOURCES), "Of images.")
_EXAMPLES = flags.DEFINE_integer(
    "examples_per_client", _DEFAULTS["examples_per_client"], "Their mean.", 1
)
_ALPHA = flags.DEFINE_float("alpha", _DEFAULTS["alpha"], "Of the clients' label proportions.")
_SEED = flags.DEFINE_integer("seed", _DEFAULTS["seed"], "Of all draws.", 0)


def main(_):
    """Writes the population of the flags."""
    binary.require(clients=_CLIENTS.value, out=_OUT.value)
    options = {
        "clients": _CLIENTS.value,
        "source": _SOURCE.value,
        "examples_per_client": _EXAMPLES.value,
        "alpha": _ALPHA.value,
        "seed": _SEED.value,
        "data_dir": _OUT.value,
    }
    columns = TextColumn("clients"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # In a log file the bar is shown once, at its end.
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=_CLIENTS.value)
        dataset = population.make(**options, progress=lambda n: bar.update(task, completed=n))
        bar.update(task, completed=_CLIENTS.value)
    train = dataset.splits["train"]
    size = sum(array.nbytes for array in train.arrays.values())
    print(
        f"{train.num_clients} clients, {train.num_examples} examples, {size / 2**20:.1f} MiB; use:"
    )
    changed = {name: value for name, value in options.items() if value != _DEFAULTS[name]}
    print(
        "  --config=configs/fedavg/population_mlp.py "
        + " ".join(f"--config.dataset.{name}={value}" for name, value in changed.items())
    )


if __name__ == "__main__":
    app.run(binary.guarded(main), flags_parser=binary.parse_flags)
