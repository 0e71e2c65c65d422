"""Shared by all tests: compiled programs are kept for the session, for subprocesses too."""

import os
import shutil
import tempfile


def pytest_configure(config):
    # Workers of pytest-xdist inherit the directory of the process that started them.
    if "FEDLITE_TEST_CACHE" not in os.environ:
        config.fedlite_cache = tempfile.mkdtemp(prefix="fedlite-tests-")
        os.environ["FEDLITE_TEST_CACHE"] = os.environ["FEDLITE_CACHE"] = config.fedlite_cache
    # Read when jax is imported, which the test modules do.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["FEDLITE_CACHE"], "xla")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


def pytest_unconfigure(config):
    if hasattr(config, "fedlite_cache"):
        shutil.rmtree(config.fedlite_cache, ignore_errors=True)
