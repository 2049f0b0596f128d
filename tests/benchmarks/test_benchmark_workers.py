"""Processes of the benchmarks end with the benchmark."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from helpers.world import ROOT

PROGRAM = """
import signal, sys, time
from benchmarks.workers import apart
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
print(apart("time", time.sleep, 0.0), flush=True)
apart("time", time.sleep, 120.0)
"""


def test_a_benchmark_that_is_stopped_does_not_wait_for_its_process() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "None\n"
        time.sleep(1)
        stopped = time.monotonic()
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait(timeout=60) == 128 + signal.SIGTERM
        assert time.monotonic() - stopped < 30
