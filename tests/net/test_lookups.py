"""So many threads and no more; what hangs in one of them holds up neither the others nor the end of the process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from fastrelay.net.lookups import Lookups


def test_results_and_errors_come_back() -> None:
    threads = Lookups(2)
    assert [threads.submit(pow, 2, number).result(5) for number in range(5)] == [1, 2, 4, 8, 16]
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result(5)
    assert threads.submit(int, "ff", base=16).result(5) == 255
    threads.shutdown()


def test_so_many_at_a_time_and_the_others_in_turn() -> None:
    threads = Lookups(2)
    free = threading.Event()
    inside: list[int] = []

    def work(number: int) -> int:
        inside.append(number)
        free.wait(5)
        return number

    futures = [threads.submit(work, number) for number in range(5)]
    deadline = time.monotonic() + 5
    while len(inside) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(inside) == [0, 1] and futures[3].cancel()
    free.set()
    assert [future.result(5) for future in futures if not future.cancelled()] == [0, 1, 2, 4]
    assert 3 not in inside
    threads.shutdown()


def test_the_end_cancels_what_was_not_begun() -> None:
    threads = Lookups(1)
    begun, free = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        free.wait(5)
        return "done"

    first, second = threads.submit(work), threads.submit(work)
    assert begun.wait(5)
    threads.shutdown()
    assert second.cancelled() and not first.done()
    free.set()
    assert first.result(5) == "done"


def test_a_process_ends_while_one_hangs() -> None:
    program = (
        "import threading, time\n"
        "from fastrelay.net.lookups import Lookups\n"
        "threads, begun = Lookups(1), threading.Event()\n"
        "threads.submit(lambda: (begun.set(), time.sleep(60)))\n"
        "begun.wait(5)\n"
        "threads.shutdown()\n"
        "print('the end')\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "the end\n" and not done.stderr and time.monotonic() - start < 10
