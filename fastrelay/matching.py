"""What rules are made of: patterns of names, and a no that says which rule said it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

_LISTED: Final = 8


class Refusal(NamedTuple):
    """A no: the `rule` that said it, for logs, and half a sentence for the person who asked."""

    rule: str
    text: str


def matches(pattern: str, name: str) -> bool:
    """Whether the name is one of the pattern's, in which `*` stands for any characters. Takes time in proportion to their lengths."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    if not name.startswith(first):
        return False
    at = len(first)
    for part in rest[:-1]:
        found = name.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(name) - len(rest[-1]) >= at and name.endswith(rest[-1])


def some(words: Sequence[str], between: str) -> str:
    """The first of them: a refusal is for a person to read, and must fit into a frame."""
    more = f" and {len(words) - _LISTED} more" if len(words) > _LISTED else ""
    return between.join(words[:_LISTED]) + more
