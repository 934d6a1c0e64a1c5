"""What the process tells the person who runs it: one event a line, through stdlib logging, so that an embedding program decides where.

`event` names are stable and meant for machines; `text` is a sentence for people; `fields` are both's.
"""

from __future__ import annotations

import logging

LOGGER = logging.getLogger("fastrelay")


def info(event: str, text: str, **fields: object) -> None:
    _say(logging.INFO, event, text, fields)


def warning(event: str, text: str, **fields: object) -> None:
    _say(logging.WARNING, event, text, fields)


def error(event: str, text: str, **fields: object) -> None:
    _say(logging.ERROR, event, text, fields)


def _say(level: int, event: str, text: str, fields: dict[str, object]) -> None:
    # Never as a %-format: the text holds what strangers sent.
    LOGGER.log(level, "%s", text, extra={"event": event, "fields": fields})
