"""`python -m tests.fuzz NAME [--seconds N | --count N] [--seed N]`; each fuzzer opens with its invariant.

With `--atheris` coverage guides it, where the extra `fuzz` is installed. An input that it finds becomes a file of tests/fuzz/corpus, which
the tests replay.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.fuzz.fuzzer import Fuzzer

NAMES = ("config", "decoder", "greeting", "session", "state", "websocket")
CORPUS = Path(__file__).parent / "corpus"


def fuzzer(name: str) -> type[Fuzzer]:
    """Imported late: what is guided by coverage must not be imported before."""
    found: type[Fuzzer] = importlib.import_module(f"tests.fuzz.{name}").Fuzz
    return found
