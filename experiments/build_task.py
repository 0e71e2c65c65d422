"""The task of a config: which of its options are for the data at hand, and whether they fit it."""

from collections.abc import Mapping
from typing import Any

from absl import logging

from fedlite import tasks
from fedlite.data.federated import FederatedDataset
from fedlite.errors import UserError
from fedlite.models import units
from fedlite.tasks import wer

# Options of the task by the kind of data that they are for.
_TASK_OPTIONS = {
    "image": ("standardize", "crop", "flip"),
    "speech": (
        *("time_masks", "time_mask", "frequency_masks", "frequency_mask"),
        *("beam", "buckets"),
    ),
}


def build_task(dataset: FederatedDataset, section: Mapping[str, Any], model) -> tasks.Task:
    """The task of a data set, as yet without the model's unit axes.

    Args:
      dataset: its kind decides.
      section: `config.task`.
      model: of `fedlite.models`.

    Raises:
      UserError: names the option that is for other data or does not fit.
    """
    empty = units.UnitAxes({})
    for kind, keys in _TASK_OPTIONS.items():
        for key in keys:
            if kind != dataset.kind and section[key]:
                of = "images" if kind == "image" else kind
                has = "text" if dataset.kind == "language" else dataset.kind
                raise UserError(f"task.{key} is for {of}, but {dataset.name!r} is {has}; unset it")
    options = {key: section[key] for key in _TASK_OPTIONS.get(dataset.kind, ())}
    if dataset.kind == "speech":
        return _speech(dataset, options, model)
    if dataset.kind == "language":
        return tasks.LanguageModel(model, empty, ignored=tuple(dataset.ignored_tokens))
    if options and options["crop"] > min(dataset.splits["train"].arrays["x"].shape[1:3]):
        raise UserError(
            f"task.crop = {options['crop']} is larger than the images of {dataset.name!r}, "
            f"{dataset.splits['train'].arrays['x'].shape[1:3]}"
        )
    return tasks.Classification(model, empty, **options)


def _speech(dataset: FederatedDataset, options: dict[str, Any], model) -> tasks.Speech:
    # With adapters a model is a backbone's.
    if not hasattr(getattr(model, "backbone", model), "output_frames"):
        raise UserError(
            f"{dataset.name!r} is speech, which needs a model that reads frames: set model.name = "
            "'conformer'"
        )
    wer.check_installed()
    for masks, mask in (("time_masks", "time_mask"), ("frequency_masks", "frequency_mask")):
        if bool(options[masks]) != bool(options[mask]):
            raise UserError(
                f"task.{masks} = {options[masks]} with task.{mask} = {options[mask]}: set the "
                "number of masks and their greatest length, or neither"
            )
    buckets = tuple(options.pop("buckets"))
    if any(type(n) is not int or n < 1 for n in buckets) or sorted(set(buckets)) != [*buckets]:
        raise UserError(f"task.buckets = {buckets} must be whole numbers of frames that rise")
    task = tasks.Speech(
        model,
        units.UnitAxes({}),
        vocabulary=tuple(dataset.vocabulary),
        separator=dataset.separator,
        buckets=buckets,
        **options,
    )
    train = dataset.splits["train"]
    impossible = task.left_out(train)
    if impossible == train.num_examples:
        raise UserError(
            f"no utterance of {dataset.name!r} has as many frames, after the model's subsampling, "
            "as its transcript has tokens: choose words as tokens, or longer utterances"
        )
    if impossible:
        logging.warning(
            "%d of %d training utterances have fewer frames than CTC needs: the loss leaves them "
            "out",
            impossible,
            train.num_examples,
        )
    return task
