"""Shared by all tests: compiled programs are kept for the session, for subprocesses too."""

import os
import shutil
import tempfile

# Workers of pytest-xdist share the directory of the process that started them.
_OWNER = "FEDLITE_TEST_CACHE" not in os.environ
if _OWNER:
    os.environ["FEDLITE_TEST_CACHE"] = tempfile.mkdtemp(prefix="fedlite-tests-")
os.environ["FEDLITE_CACHE"] = os.environ["FEDLITE_TEST_CACHE"]
# JAX reads these when it is imported, which the tests do.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["FEDLITE_CACHE"], "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


def pytest_unconfigure():
    if _OWNER:
        shutil.rmtree(os.environ["FEDLITE_TEST_CACHE"], ignore_errors=True)
