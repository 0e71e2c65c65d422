"""Fills in what README.md says that the code and the results know better.

    python -m scripts.tables.harness.readme

A generated part stands between `<!-- NAME -->` and `<!-- end -->`.
"""

import importlib
import inspect
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


def result_list() -> str:
    """The tables that were run: their titles and files."""
    found = {}
    for file in sorted((ROOT / "results").glob("**/table.md")):
        title = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        found[file.parent.relative_to(ROOT)] = title
    return "\n".join(f"* [{title}]({path}/table.md)" for path, title in found.items())


def filled(text: str) -> str:
    """README's text with its generated parts made anew."""
    parts = {
        "methods": method_table(),
        "quickstart": quickstart_table(),
        "results": result_list(),
    }
    for name, part in parts.items():
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
    """By method, the config that runs it: alone rather than in a chain, on MNIST-5k if possible.

    Of the rest the shortest name, then the first.
    """
    found: dict[str, tuple] = {}
    for file in (ROOT / "configs").glob("*/*.py"):
        if file.stem == "__init__":
            continue
        path = file.relative_to(ROOT)
        chain = importlib.import_module(".".join(path.with_suffix("").parts)).get_config().method
        for name in chain.split("+"):
            rank = (chain.count("+"), "mnist5k" not in path.stem, len(str(path)), str(path))
            found[name] = min(found.get(name, rank), rank)
    return {name: rank[-1] for name, rank in found.items()}


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
