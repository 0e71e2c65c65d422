"""Tests of what is declared: requirements, pinned versions, make's targets, README's commands."""

import ast
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import types

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import tables
from scripts.tables.harness import readme

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("fedlite", "experiments", "configs", "scripts", "tests")
PYTHONS = ("3.11", "3.12", "3.13")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def environment(python, extra=""):
    """What markers see under a version of Python on this platform."""
    versions = {"python_version": python, "python_full_version": f"{python}.9"}
    return {**default_environment(), **versions, "extra": extra}


def lines(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def pins(python):
    """Versions by name that constraints.txt has for a version of Python."""
    found = {}
    for line in lines("constraints.txt"):
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(environment(python)):
            assert pin.name not in found, f"two versions of {pin.name} for Python {python}"
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            found[canonicalize_name(pin.name)] = specifier.version
    return found


def declared():
    """The arguments of setup.py's call."""
    said = {}
    stub = types.ModuleType("setuptools")
    stub.setup = lambda **arguments: said.update(arguments)
    stub.find_namespace_packages = lambda include: include
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "setuptools", stub)
        runpy.run_path(str(ROOT / "setup.py"))
    return said


def requirements():
    """Of the package, its extras and its build, as (requirement, extra)."""
    said = declared()
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    for line in [*said["install_requires"], *build]:
        yield Requirement(line), ""
    for extra, listed in said["extras_require"].items():
        for line in listed:
            yield Requirement(line), extra


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_within_its_range(python):
    pinned = pins(python)
    for requirement, _ in requirements():
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), (requirement, version)


def test_pins_are_closed_under_requirements():
    pinned = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    for name in pinned:
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            # Of an extra that is not installed here, or of another platform.
            continue
        for requirement in map(Requirement, needed):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in pinned, (name, requirement)


@pytest.mark.parametrize("file", ["constraints.txt", "requirements-data.txt"])
def test_pins_name_no_address(file):
    for line in lines(file):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9a-z.]+( ; [^@:/]+)?", line)


def imported(file):
    """The top-level names that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_what_is_imported_is_declared():
    names = {canonicalize_name(requirement.name) for requirement, _ in requirements()}
    distributions = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            if file.read_text(encoding="utf-8").startswith("# /// script"):
                # Declares its own requirements, which uv installs apart.
                continue
            # Benchmarks are run from a checkout, and are not installed.
            ours = {*PACKAGES, "benchmarks"}
            for module in set(imported(file)) - set(sys.stdlib_module_names) - ours:
                # A distribution that is not installed has the name of its module.
                owners = {canonicalize_name(d) for d in distributions.get(module, [module])}
                assert owners & names, f"{file} imports {module}, which setup.py does not name"


def test_every_package_is_installed():
    patterns = declared()["packages"]
    assert {pattern.removesuffix(".*") for pattern in patterns} == set(PACKAGES) - {"tests"}


# make and CI.


def make(directory, *arguments, path=None):
    return subprocess.run(
        ["make", *arguments],
        cwd=directory,
        env={**os.environ, "PATH": path or os.environ["PATH"], "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def clone(tmp_path):
    """A directory with what the Makefile needs, and no .venv."""
    for file in ("Makefile", "setup.py", "constraints.txt", "requirements-data.txt"):
        shutil.copy(ROOT / file, tmp_path)
    return tmp_path


def fake(directory, name, script):
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


def test_make_refuses_an_old_python(clone):
    fake(clone / "bin", "old", "exit 1")
    done = make(clone, "quickstart", f"PYTHON={clone}/bin/old")
    assert done.returncode == 2 and not (clone / ".venv").exists()
    assert re.search(r"^error: .*/bin/old is no Python of 3\.11 or newer", done.stderr, re.M)


def test_make_finds_a_python_that_is_new_enough(clone):
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        fake(clone / "bin", name, "exit 0" if name == "python3.12" else "exit 1")
    path = f"{clone / 'bin'}:{os.environ['PATH']}"
    assert "python3.12 -m venv .venv\n" in make(clone, "-n", "quickstart", path=path).stdout
    fake(clone / "bin", "python3.12", "exit 1")
    done = make(clone, "quickstart", path=path)
    assert done.returncode == 2 and "error: no python3 here is" in done.stderr


def test_make_builds_the_environment_again_when_versions_change(clone):
    fake(clone / ".venv", ".runs", "")
    assert "-m venv" not in make(clone, "-n", "quickstart").stdout
    stamp = (clone / ".venv" / ".runs").stat().st_mtime
    for file in ("setup.py", "constraints.txt", "requirements-data.txt"):
        os.utime(clone / file, (stamp + 9, stamp + 9))
        assert "-m venv" in make(clone, "-n", "quickstart").stdout
        os.utime(clone / file, (stamp - 9, stamp - 9))


@pytest.mark.parametrize("code", [0, 2])
def test_ci_is_make_test(tmp_path, code):
    said = 'echo "make $* $FEDLITE_REQUIRE_TFF"; echo "3 passed in 0.1s"'
    fake(tmp_path, "make", f"{said}; exit {code}")
    done = subprocess.run(
        [ROOT / ".ci" / "run"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert done.stdout == "make test 1\n3 passed in 0.1s\n"


# README.


def commands():
    """README's code blocks and inline code, each a line."""
    blocks = re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + inline


def test_readme_names_files_that_exist():
    files = [
        file
        for line in commands()
        for file in re.findall(r"\b(?:configs|scripts|tests|fedlite|experiments)/[\w./*-]+", line)
    ]
    files += [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(files) > 10
    for file in files:
        assert list(ROOT.glob(file)), f"README names {file}"


def test_readme_names_commands_that_exist():
    text = "\n".join(commands())
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module
    for name in re.findall(r"(?:--table=|TABLE=)([\w/]+)", text):
        assert name in (*tables.names(), "PAPER/NAME"), name
    for target in re.findall(r"^make ([a-z]+)", text, re.MULTILINE):
        assert make(ROOT, "-n", target, "TABLE=quickstart").returncode == 0, target
    for key in re.findall(r"--config\.([\w.]+)", text):
        assert key.split(".")[0] in known_keys(), key


def known_keys():
    from configs.fedavg import mnist5k_cnn

    return mnist5k_cnn.get_config()


def generated(name):
    """The lines of a generated part of README, without the padding of their columns."""
    (part,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- end -->", README, re.DOTALL)
    return unpadded(part)


def unpadded(table):
    return [re.sub(r" +|-+", " ", line) for line in table.splitlines() if line.startswith("|")]


def test_readme_says_of_methods_what_the_code_says():
    # A new method may wait for the next `make readme`, but nothing stale may stand there.
    listed = generated("methods")
    assert len(listed) >= 8 and set(listed) <= set(unpadded(readme.method_table()))


def test_readme_lists_the_tables_that_were_run():
    (part,) = re.findall(r"<!-- results -->\n(.*?)<!-- end -->", README, re.DOTALL)
    assert part.strip() == readme.result_list()


def test_readme_shows_the_quickstart_as_it_was_printed():
    assert generated("quickstart") == unpadded(readme.quickstart_table())
