"""FedOBD's accounting: the known figures, formulas by hand, and the table that is written."""

import csv
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from fedlite import wire
from fedlite.errors import UserError
from fedlite.federated.conventions import MEGABYTE, Comparison, counts
from scripts import tables
from scripts.tables import fedobd
from scripts.tables.harness.computed import ComputedTable

ROOT = pathlib.Path(__file__).parents[2]

# Megabytes by the authors' count, computed from their formulas.
AUTHORS = {
    "CIFAR-10": {
        "FedAvg, all clients": 13_504.23,
        "FedAvg, same cohort": 6_785.71,
        "FedPAQ": 4_266.26,
        "FedDropoutAvg": 5_777.93,
        "FedOBD-SQ": 1_830.80,
        "FedOBD, 5 bits": 1_169.44,
        "FedOBD, 6 bits": 1_389.89,
        "FedOBD, 7 bits": 1_610.35,
        "FedOBD, 8 bits": 1_830.80,
    },
    "CIFAR-100": {
        "FedAvg, all clients": 7_211.02,
        "FedAvg, same cohort": 3_623.45,
        "FedPAQ": 2_278.11,
        "FedDropoutAvg": 3_085.31,
        "FedOBD-SQ": 977.61,
        "FedOBD, 5 bits": 624.46,
        "FedOBD, 6 bits": 742.18,
        "FedOBD, 7 bits": 859.90,
        "FedOBD, 8 bits": 977.61,
    },
}
MESSAGES = {"CIFAR-10": (20_100, 10_100, 12_100), "CIFAR-100": (10_050, 5_050, 6_050)}


@pytest.fixture(scope="module")
def found():
    """Counts by data set and method."""
    comparisons = {
        "CIFAR-10": fedobd.comparison("configs/fedobd/cifar10_densenet.py", 10),
        "CIFAR-100": fedobd.comparison("configs/fedobd/cifar100_densenet.py", 100),
    }
    assert [c.params for c in comparisons.values()] == [176_122, 188_092]
    assert [c.blocks for c in comparisons.values()] == [41, 41]
    return {name: {c.method: c for c in counts(each)} for name, each in comparisons.items()}


@pytest.mark.parametrize("name", AUTHORS)
def test_authors_megabytes(name, found):
    for method, megabytes in AUTHORS[name].items():
        assert round(found[name][method].authors / MEGABYTE, 2) == megabytes, method
    assert found[name]["FedOBD, 8 bits"].authors == found[name]["FedOBD-SQ"].authors


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name, found):
    by_method = {method: count.messages for method, count in found[name].items()}
    everyone, cohort, two_stages = MESSAGES[name]
    assert by_method.pop("FedAvg, all clients") == everyone
    for method, messages in by_method.items():
        assert messages == (two_stages if "FedOBD" in method else cohort), method


def test_the_claim_of_88_percent_taken_apart(found):
    def less(convention, method, reference):
        one, other = (getattr(found["CIFAR-10"][m], convention) for m in (method, reference))
        return round(100 * (1 - one / other), 1)

    seven = "FedOBD, 7 bits"
    assert less("authors", seven, "FedAvg, all clients") == 88.1
    assert less("authors", seven, "FedAvg, same cohort") == 76.3
    assert less("authors", seven, "FedPAQ") == 62.3
    assert less("with_signs", seven, "FedAvg, all clients") == 86.4
    assert less("as_encoded", seven, "FedAvg, same cohort") < 76.3


SMALL = Comparison(
    tensors=(7, 3), blocks=9, clients=5, cohort=2, rounds=3, stage2_rounds=4, dropout_rate=0.5
)


def test_every_count_by_hand():
    # P = 10, 3 rounds of 2 are 6 turns, the late messages 2 * 4 * 5 = 40, the start 5.
    start, half = 5 * 40, 0.5
    by_method = {c.method: c for c in counts(SMALL, bits=[3])}
    # In whole bytes a tensor: 9 bits take 8 + 4 bytes, 4 bits take 4 + 2.
    fedpaq, nnadq = 12 + 2 * 4, 6 + 2 * 3 * 4
    expected = {
        "FedAvg, all clients": (35, start + 30 * 40, start + 30 * 40, 30 * 40),
        "FedAvg, same cohort": (17, start + 12 * 40, start + 12 * 40, 12 * 40),
        "FedPAQ": (17, start + 6 * 50, start + 6 * (40 + 11.25), 6 * (40 + fedpaq)),
        "FedDropoutAvg": (17, start + 6 * 60, start + 6 * 60, 6 * 60),
        "SMAFD": (17, start + 6 * 20 + 3 * 20, start + 6 * 20 + 3 * 20, 6 * (20 + 20 + 1)),
        "FedOBD-SQ": (
            57,
            start + 6 * 15 + 40 * 10,
            start + (6 * 15 + 40 * 10) * 9 / 8,
            6 * ((1 + half) * fedpaq + 2) + 40 * fedpaq,
        ),
        "FedOBD, 3 bits": (
            57,
            start + (6 * 15 + 40 * 10) * 3 / 8,
            start + (6 * 15 + 40 * 10) * 4 / 8,
            6 * ((1 + half) * nnadq + 2) + 40 * nnadq,
        ),
    }
    assert list(by_method) == list(expected)
    for method, (messages, *sizes) in expected.items():
        count = by_method[method]
        assert count.messages == messages, method
        found = (count.authors, count.with_signs, count.as_encoded)
        assert all(map(math.isclose, found, sizes)), (method, found, sizes)


@pytest.mark.parametrize(("codec", "method"), [("", "FedAvg, same cohort"), ("fedpaq", "FedPAQ")])
def test_encoded_bytes_are_those_of_the_wire(codec, method):
    """Of messages that are really written."""
    values = [np.linspace(-1, 1, size, dtype=np.float32) for size in SMALL.tensors]
    encoder = wire.parse_codec(codec)

    def message(encoder):
        parts = {}
        for i, value in enumerate(values):
            part = wire.Part(value)
            if encoder:
                codes = encoder.encode(value, jax.random.key(0))
                part = part._replace(codes=codes.codes, bits=codes.bits, side=codes.side)
            parts[str(i)] = part
        return len(wire.write(parts))

    by_method = {c.method: c.as_encoded for c in counts(SMALL)}
    turns = SMALL.rounds * SMALL.cohort
    assert by_method[method] == turns * (message(None) + message(encoder))


def test_bits_are_those_of_nnadq():
    """The side information and the code of 1 + b bits that the closed form assumes."""
    value = np.linspace(-0.1, 0.1, 21, dtype=np.float32)
    encoded = wire.NNADQ(0.001).encode(value)
    assert int(encoded.bits) == 1 + 7  # q = 66
    part = wire.Part(value, codes=encoded.codes, bits=encoded.bits, side=encoded.side)
    one = Comparison((21,), 1, 1, 1, 0, 1, 0.0)
    last = counts(one, bits=[7])[-1]
    assert last.as_encoded == 2 * len(wire.write({"a": part}))


def test_table_is_written_without_runs(tmp_path):
    command = [sys.executable, "-m", "scripts.reproduce_table", "--table=fedobd/accounting"]
    done = subprocess.run(
        [*command, "--scale=paper", f"--out={tmp_path / 'out'}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["table.csv", "table.md"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert text.strip() in done.stdout and "13,504.23" in text
    assert "--table=fedobd/accounting --scale=paper" in text
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 * 10
    (row,) = (
        r
        for r in rows
        if r["section"] == "CIFAR-100, as the authors count" and r["Method"] == "FedOBD, 5 bits"
    )
    assert (row["MB"], row["Messages"], row["Clients a round"]) == ("624.46", "6050", "25")


def test_the_table_has_one_scale():
    table = tables.load("fedobd/accounting")
    assert isinstance(table, ComputedTable) and "fedobd/accounting" not in tables.names()
    assert tables.computed_names() == ["fedobd/accounting"]
    with pytest.raises(UserError, match=r"--scale=bundled is not a scale of .*: use paper"):
        tables.scale_of(table, "bundled")
