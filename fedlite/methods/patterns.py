"""Regular expressions on parameter paths and widths: the first that matches the whole name."""

import re
from collections.abc import Iterable
from typing import Any

from fedlite.errors import UserError


def first_match(rules: Iterable[tuple[str, Any]], name: str, default: Any) -> Any:
    """The answer of the first rule (pattern, answer) whose pattern matches all of `name`."""
    for pattern, answer in rules:
        if re.fullmatch(pattern, name):
            return answer
    return default


def check_rules(
    rules: Iterable[tuple[str, Any]], names: Iterable[str], option: str, answer: type | tuple
):
    """Refuses a pattern that is no regular expression, or that matches none of `names`.

    Args:
      rules: pairs (pattern, answer).
      names: parameter paths or widths of the model.
      option: the option's name, for the message.
      answer: the type or types of an answer.
    """
    names = sorted(names)
    for rule in rules:
        form = isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[0], str)
        if not form or not isinstance(rule[1], answer):
            raise UserError(
                f"{option} is made of pairs (pattern, {_name(answer)}), as in "
                f"(('conv.*', ...), ...); got {rule!r}"
            )
        pattern = rule[0]
        try:
            matches = any(re.fullmatch(pattern, name) for name in names)
        except re.error as error:
            raise UserError(
                f"{option}: {pattern!r} is not a regular expression ({error})"
            ) from error
        if not matches:
            shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            raise UserError(
                f"{option}: the pattern {pattern!r} matches the whole of no name; "
                f"the model has {shown}"
            )


def _name(answer) -> str:
    return answer.__name__ if isinstance(answer, type) else "number"
