"""The difference between two rows of a speech table, with a paired bootstrap over speakers.

    python -m scripts.compare_speakers --run=TABLE/runs/ROW --against=TABLE/runs/ROW \
        [--cut=random:0.5 [--scores=submodels]]

Prints the word error rate of each row on the test speakers, all seeds pooled, and their difference,
each with its 95 % interval. With --cut=KIND:RATE also what each row loses when sub-models of that
kind and rate are cut out of it (from SCORES.json, which experiments.evaluate_submodels writes), and
the difference of the losses. A directory of a single run does in place of a row's.

Speakers are resampled, seeds are not: an interval says what other speakers would change, not what
other seeds would. Both rows need as many seeds.
"""

import json
import pathlib

from absl import app, flags

from experiments import binary
from fedlite.errors import UserError
from fedlite.tasks import wer

_RUN = flags.DEFINE_string("run", None, "Directory of a row, or of a run.")
_AGAINST = flags.DEFINE_string("against", None, "Directory of the row to compare with.")
_CUT = flags.DEFINE_string("cut", "", "KIND:RATE of sub-models, as in random:0.5.")
_SCORES = flags.DEFINE_string(
    "scores", "submodels", "Name of the file with the sub-models' scores."
)


def main(_):
    """Compares the rows of the flags."""
    binary.require(run=_RUN.value, against=_AGAINST.value)
    names = {name: pathlib.Path(name) for name in (_RUN.value, _AGAINST.value)}
    kind, _, rate = _CUT.value.partition(":")
    whole, cut = {}, {}
    for name, path in names.items():
        runs = run_directories(path)
        whole[name] = wer.pooled([wer.read_counts(run / "clients_test.json") for run in runs])
        if kind:
            cut[name] = [read_cut(run / f"{_SCORES.value}.json", kind, rate) for run in runs]
        seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
        show(f"{path.name} ({seeds})", wer.contrast([(1, whole[name])]))
    run, against = (whole[name] for name in (_RUN.value, _AGAINST.value))
    show("difference", wer.paired_bootstrap(run, against))
    if kind:
        losses = {name: loss_terms(whole[name], cut[name]) for name in names}
        for name, path in names.items():
            show(f"{path.name} cut ({_CUT.value}) loses", wer.contrast(losses[name]))
        minus = [(-weight, counts) for weight, counts in losses[_AGAINST.value]]
        show("difference of the losses", wer.contrast([*losses[_RUN.value], *minus]))


def run_directories(path: pathlib.Path) -> list[pathlib.Path]:
    """The runs of a row, one a seed; a run's own directory is its only one.

    Raises:
      UserError: nothing finished is there.
    """
    runs = sorted(found.parent for found in path.glob("seed*/summary.json"))
    if not runs and (path / "summary.json").is_file():
        runs = [path]
    if not runs:
        raise UserError(f"{path} has no finished run; name a row's directory of a table")
    return runs


def read_cut(path: pathlib.Path, kind: str, rate: str) -> list[dict[str, dict[str, int]]]:
    """Counts by speaker of each sub-model of a kind and rate.

    Raises:
      UserError: the file is missing or has no such sub-model.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        found = [row for row in rows if row["kind"] == kind and row["rate"] == float(rate)]
        return found[0]["clients"]
    except OSError as error:
        raise UserError(f"{path} is not there: run experiments.evaluate_submodels") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path} has no sub-models {kind}:{rate} with counts of speakers: run "
            "experiments.evaluate_submodels with this kind and rate"
        ) from error


def loss_terms(whole, cut) -> list:
    """Terms of `wer.contrast`: the rate of the sub-models of all seeds, minus that of the whole."""
    draws = len(cut[0])
    # As many copies as there are draws, so that both speak of the same words.
    return [
        (1, wer.pooled([each for own in cut for each in own])),
        (-1, wer.pooled([whole] * draws)),
    ]


def show(label: str, interval: wer.Interval):
    """One line, in percent."""
    value, low, high = (100 * number for number in interval)
    print(f"{label}: {value:.1f} [{low:.1f}, {high:.1f}]")


if __name__ == "__main__":
    app.run(binary.guarded(main), flags_parser=binary.parse_flags)
