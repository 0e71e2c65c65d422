"""Semantic blocks: the parts of a model that FedOBD sends or drops as a whole.

After section 3 of FedOBD (arXiv 2208.05174) and its authors' rules. Paths of parameters tell the
modules, and each parameter belongs to the block of the first rule that applies:

* a pattern of the user's;
* a Transformer layer: a module with an attention in it, which has query, key and value;
* a bottleneck: a module of the three convolutions conv1, conv2 and conv3;
* a convolution and the norm beside it, before or after, with or without an activation between:
  norm1 and conv1, stem_conv and stem_norm, which bear one name but for "norm" and "conv". The
  block is called as the convolution;
* else the module that holds the parameter.
"""

import collections
import re
from collections.abc import Iterable, Mapping

from fedlite.errors import UserError

_ATTENTION = {"query", "key", "value"}
_BOTTLENECK = {"conv1", "conv2", "conv3"}


def semantic_blocks(
    paths: Iterable[str], overrides: tuple[tuple[str, str], ...] = ()
) -> dict[str, str]:
    r"""The block of every parameter; a parameter is in one block.

    >>> semantic_blocks(["norm/bias", "norm/scale", "conv/kernel", "logits/bias"])
    {'conv/kernel': 'conv', 'logits/bias': 'logits', 'norm/bias': 'conv', 'norm/scale': 'conv'}

    Args:
      paths: of the parameters, such as "layer1/ffn1/kernel".
      overrides: pairs (pattern, block) such as (r"(block\d)_.*", r"\1"). The first pattern that
        matches the whole of a path gives its block, in which references to groups are filled
        in. A block may bear the name of one that the rules make; then both are one.

    Returns:
      The names of blocks by path, in the order of the paths' names.

    Raises:
      UserError: a pattern or a reference is wrong, or a pattern matches no path.
      ValueError: a path is given twice.
    """
    paths = list(paths)
    if len(set(paths)) != len(paths):
        raise ValueError("the paths of parameters must differ")
    children = _children(paths)
    named = _overridden(paths, overrides)
    return {path: named.get(path) or _block(path, children) for path in sorted(paths)}


def _children(paths: Iterable[str]) -> Mapping[str, set[str]]:
    """The names inside every module by its path; a parameter is a name, too."""
    children = collections.defaultdict(set)
    for path in paths:
        parts = path.split("/")
        for depth, name in enumerate(parts):
            children["/".join(parts[:depth])].add(name)
    return children


def _block(path: str, children: Mapping[str, set[str]]) -> str:
    modules = path.split("/")[:-1]
    for depth in range(1, len(modules) + 1):
        module = "/".join(modules[:depth])
        attends = any(
            _ATTENTION <= children.get(f"{module}/{child}", set()) for child in children[module]
        )
        if attends or _BOTTLENECK <= children[module]:
            return module
    if not modules:
        return path
    *parents, name = modules
    if "norm" in name:
        convolution = name.replace("norm", "conv")
        if convolution in children["/".join(parents)]:
            name = convolution
    return "/".join([*parents, name])


def _overridden(paths: list[str], overrides: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The blocks that the user's patterns give."""
    named = {}
    for pattern, block in overrides:
        try:
            found = {p: m.expand(block) for p in paths if (m := re.fullmatch(pattern, p))}
        except re.error as error:
            raise UserError(
                f"the block pattern {pattern!r} with the name {block!r} is wrong ({error}): mend "
                "the regular expression, and refer to its groups only"
            ) from error
        if not found:
            raise UserError(
                f"the block pattern {pattern!r} matches the whole of no parameter's path; the "
                f"first are {', '.join(sorted(paths)[:5])}"
            )
        named = {**found, **named}
    return named
