"""Peak memory of loading and running a model, measured for each model in a process of its own.

A process's high-water mark never falls, and memory that one model freed would hide another's need. So one fresh
interpreter imports the libraries once, then forks for every model. A child's mark starts at what it has inherited.

    python -m stages.evaluate.peak < request.json      (`measure_peaks` starts this)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from stages.adapters.loading import Source
from stages.common.machine import resident_bytes
from stages.errors import UserError
from stages.evaluate.config import CostConfig
from stages.evaluate.timing import timed_passes
from stages.stage import JSON


def measure_peaks(
    models: Mapping[str, Source], config: CostConfig, device: str, cards: Sequence[str] = ()
) -> dict[str, JSON]:
    """Return, for each model, the memory of a process that loads it and generates with it.

    Keys: peak_memory_bytes, the process's resident high-water mark (null where the system has no /proc);
    libraries_bytes, the part of it from before the model was loaded; peak_device_memory_bytes on a GPU, or on all of
    `cards` where models are spread over these, else null.

    Raises:
        UserError: a model could not be run alone, most likely because memory is too small.
    """
    places = {name: [str(source.model), source.recovery and str(source.recovery)] for name, source in models.items()}
    request = {"models": places, "config": asdict(config), "device": device, "cards": list(cards)}
    # The new interpreter must find this project from any working directory.
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "stages.evaluate.peak"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message; the system may have ended it for its memory"])[-1]
        raise UserError(f"measuring peak memory failed: {reason} Free some memory, or skip the costs: evaluate=none.")
    peaks: dict[str, JSON] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def _measure(source: Source, config: CostConfig, device: str, cards: Sequence[str]) -> JSON:
    libraries = resident_bytes("VmRSS")
    model = source.load(dtype=config.dtype, device=device, cards=cards)
    list(timed_passes(model, prompt_tokens=config.prompt_tokens, new_tokens=1))  # reading the prompt is the peak
    on_device = None
    if model.device.type == "cuda":
        import torch

        on_device = sum(map(torch.cuda.max_memory_allocated, cards or [model.device]))
    return {
        "peak_memory_bytes": resident_bytes("VmHWM"),
        "libraries_bytes": libraries,
        "peak_device_memory_bytes": on_device,
    }


def _measure_in_fork(source: Source, config: CostConfig, device: str, cards: Sequence[str]) -> JSON:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.write(writer, json.dumps(_measure(source, config, device, cards)).encode())
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)  # without the parent's clean-up, which must not run twice
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(1)
    measured: JSON = json.loads(answer)
    return measured


def main() -> None:
    """Answer one request from standard input on standard output."""
    request = json.load(sys.stdin)
    config = CostConfig(**request["config"])
    models = {
        name: Source(Path(model), Path(recovery) if recovery else None)
        for name, (model, recovery) in request["models"].items()
    }
    places = config, request["device"], request["cards"]
    print(json.dumps({name: _measure_in_fork(source, *places) for name, source in models.items()}))


if __name__ == "__main__":
    main()
