"""What the tests of fastrelay.state share."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fastrelay.errors import StartError

URL = "tls://relay.example.com:7443"

posix = pytest.mark.skipif(os.name == "nt", reason="modes are those of POSIX")


def refused(step: Callable[[], object], *says: str) -> None:
    with pytest.raises(StartError) as caught:
        step()
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    for word in says:
        assert word in text


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
