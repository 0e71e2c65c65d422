"""Fills in what README.md says that the code and the results know better.

    python -m scripts.tables.harness.readme

A generated part stands between `<!-- NAME -->` and `<!-- end -->`.
"""

import importlib
import inspect
import pathlib
import re

from fedlite import methods
from fedlite.methods import registry
from scripts.tables.harness.plan import ROOT
from scripts.tables.harness.report import grid

README = ROOT / "README.md"
RESULTS = ROOT / "results" / "quickstart" / "table.md"
_PAPER = re.compile(r"((?:Mc)?[A-Z]\w+(?: et al\.| and [A-Z]\w+)? \d{4})[\s,(]+arXiv\s([\d.]+\d)")


def method_table() -> str:
    """A line a method: its name, what it is, its paper and a config."""
    lines = [["`method`", "What it is", "Paper", "Config"]]
    configs = _configs()
    for name in methods.names():
        paper = _PAPER.search(inspect.getmodule(registry._lookup(name)).__doc__)
        link = f"[{paper[1]}](https://arxiv.org/abs/{paper[2]})" if paper else ""
        config = f"`{configs[name]}`" if name in configs else ""
        lines.append([f"`{name}`", registry.summary(name), link, config])
    return grid(lines, numbers=False)


def quickstart_table() -> str:
    """The table as it was printed."""
    printed = RESULTS.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in printed if line.startswith("|"))


def filled(text: str) -> str:
    """README's text with its generated parts made anew."""
    for name, part in (("methods", method_table()), ("quickstart", quickstart_table())):
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda match, part=part: f"{match[1]}\n{part}\n\n{match[2]}",
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"README.md needs one part <!-- {name} --> ... <!-- end -->")
    return text


def _configs() -> dict[str, str]:
    """By method, the config that runs it alone; the first by name, on MNIST-5k if there is one."""
    found: dict[str, pathlib.Path] = {}
    files = sorted(path for path in (ROOT / "configs").glob("*/*.py") if path.stem != "__init__")
    for file in sorted(files, key=lambda path: "mnist5k" not in path.stem):
        path = file.relative_to(ROOT)
        module = importlib.import_module(".".join(path.with_suffix("").parts))
        found.setdefault(module.get_config().method, path)
    return {method: str(path) for method, path in found.items()}


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
