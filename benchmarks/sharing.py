"""A training beside other work on the same cores: what is kept of its speed, by the number of threads.

    python -m benchmarks.sharing
    python -m benchmarks.sharing --loads 0 1 --seconds 3

A small decoder with random weights is trained, in a process of its own, beside processes that do nothing but count.
`all` takes as many threads as torch does, `one` takes one, and `ours` takes what the engine would. `passive` takes all,
and lets those that wait sleep (OMP_WAIT_POLICY). Settings take turns. A share is of the speed of `all` without load.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pipeline.engine.sharing import measured
from stages.common.machine import hardware

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "all": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one": {"OMP_NUM_THREADS": "1"},
    "ours": {},
}
"""The environment of each setting."""
LENGTH = 512
"""Tokens of a step."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the command line asks for."""
    options = _parser().parse_args(arguments)
    if options.child:
        print(train(options.child, options.seconds))
        return
    found: dict[int, dict[str, float]] = {}
    for load in options.loads:
        with busy(load):
            rounds = [{name: _apart(name, options.seconds) for name in SETTINGS} for _ in range(options.rounds)]
        found[load] = {name: statistics.fmean(one[name] for one in rounds) for name in SETTINGS}
        print(f"{load} busy: " + ", ".join(f"{name} {rate:.0f}" for name, rate in found[load].items()), flush=True)
    whole = found[options.loads[0]]["all"]
    shares = {load: {name: rate / whole for name, rate in rates.items()} for load, rates in found.items()}
    print(json.dumps({"tokens_per_second": found, "shares": shares, "hardware": hardware()}))


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep `count` cores busy, each by a process of its own session."""
    command = [sys.executable, "-c", "while True: pass"]
    counting = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in counting:
            process.kill()
            process.wait()


def train(setting: str, seconds: float) -> float:
    """Return the tokens a second of a training in this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if setting == "ours":
        torch.set_num_threads(measured().threads(torch.get_num_threads()))
    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=6, vocab_size=8192))
    tokens = torch.randint(0, 8192, (1, LENGTH))
    steps, started = -1, time.perf_counter()
    while steps < 1 or time.perf_counter() - started < seconds:
        model(tokens, labels=tokens).loss.backward()
        model.zero_grad()
        steps += 1
        if steps == 0:  # the first step sets libraries up
            started = time.perf_counter()
    return steps * LENGTH / (time.perf_counter() - started)


def _apart(setting: str, seconds: float) -> float:
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, "-m", "benchmarks.sharing", "--child", setting, "--seconds", str(seconds)]
    ended = subprocess.run(command, env={**own, **SETTINGS[setting]}, check=True, stdout=subprocess.PIPE, text=True)
    return float(ended.stdout)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--loads", type=int, nargs="+", default=[0, 1, 2, 4], help="busy processes (0 1 2 4)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each training (8)")
    parser.add_argument("--rounds", type=int, default=2, help="trainings of each setting, in turns (2)")
    parser.add_argument("--child", choices=tuple(SETTINGS), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
