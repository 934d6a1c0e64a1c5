"""`python -m tests.check [pytest arguments]`: everything that must hold before a change is kept, cheapest first."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ["fastrelay", "bench", "tests"]
TWO_AT_A_TIME = ["-n", "2", "--dist", "loadscope"]
"""Most tests wait for processes and timers. The tests of a file stay together, and share the processes that it started."""


def main(arguments: list[str]) -> int:
    """Run the steps in order; the exit code of the first that fails, else 0."""
    if not test_tools_agree():
        print("== pyproject.toml: the extra `test` and the dependency group `test` differ", flush=True)
        return 1
    steps: dict[str, list[str]] = {
        "ruff format": ["ruff", "format", "--check", *CODE],
        "ruff check": ["ruff", "check", *CODE],
        "mypy --strict": ["mypy", "--strict", *CODE],
        "pytest": ["pytest", *TWO_AT_A_TIME, *arguments],
    }
    for name, command in steps.items():
        print(f"== {name}", flush=True)
        start = time.monotonic()
        code = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode
        if code:
            print(f"== {name}: failed with exit code {code}", flush=True)
            return code
        print(f"== {name}: ok, {time.monotonic() - start:.1f} s", flush=True)
    return 0


def test_tools_agree() -> bool:
    """The test tools stand twice in pyproject.toml, as pips before 25.1 do not know dependency groups."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return bool(project["project"]["optional-dependencies"]["test"] == project["dependency-groups"]["test"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
