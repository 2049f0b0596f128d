"""Calls of the hub path, each in a process of its own: huggingface_hub reads its settings once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPO = "someone/tiny"
PREAMBLE = """
import logging, sys
from pathlib import Path
from stages.errors import UserError
from stages.fetch.hub import resolve_revision
from stages.model.hub import cached_config, download
logging.basicConfig(level=logging.INFO, format="%(message)s")
def main():
    {code}
try:
    main()
except UserError as error:
    sys.exit(f"UserError: {{error}}")
"""


def command(code: str) -> list[str]:
    return [sys.executable, "-c", PREAMBLE.format(code=code)]


def environment(*layers: dict[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    for layer in layers:
        clean |= layer
    return clean


def ask(code: str, *layers: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(code), env=environment(*layers), capture_output=True, text=True, timeout=120)


def refusal(code: str, *layers: dict[str, str]) -> str:
    """Run `code` and return its UserError."""
    done = ask(code, *layers)
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr[done.stderr.rindex("UserError: ") :]
    assert "Traceback" not in done.stderr
    return last


def write_safetensors(path: Path, size: int) -> None:
    """Write one float32 tensor of `size` bytes without torch."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(256)) * (size // 256))


def write_repository(directory: Path) -> Path:
    """Write a repository with everything twice, as they come: two weight formats, other frameworks, papers."""
    (directory / "original").mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    (directory / "tokenizer.json").write_text("{}")
    for name in ("README.md", "pytorch_model.bin", "tf_model.h5", "original/consolidated.pth", "modeling.py"):
        (directory / name).write_text(name)
    write_safetensors(directory / "model.safetensors", 1024)
    return directory


def fetching(revision: str) -> str:
    """Return the code that downloads `REPO` and prints where it lies."""
    return f"print(download({REPO!r}, {revision!r}))"
