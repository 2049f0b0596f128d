"""Material of a benchmark: a model and documents from the artifact store, built there by the pipeline's own stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path

import yaml

import pipeline
from pipeline.engine.engine import Engine
from pipeline.engine.store import Store
from pipeline.planning.build import build_graph
from pipeline.planning.graph import Graph
from pipeline.planning.settled import cache_directory
from pipeline.schema.config import Config
from pipeline.schema.overrides import check_arguments
from stages.common.files import read_json, read_jsonl
from stages.common.machine import precision
from stages.decoders.checkpoint import load_tokenizer
from stages.errors import UserError
from stages.task_library.definitions import Document, documents, leaf_folder, load
from stages.task_library.instructions import EVALUATION, instruct


@dataclass(frozen=True, slots=True)
class Material:
    """One model and the questions it is asked.

    Attributes:
        model: the model's directory.
        device: the device that it runs on.
        dtype: the precision that an evaluation takes on that device.
        documents: by task, the documents with their (context, continuation) requests.
        prompts: by task, the prompts of the generation protocol.
    """

    model: Path
    device: str
    dtype: str
    documents: dict[str, list[Document]]
    prompts: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Built:
    """Artifacts of a configuration, by role."""

    config: Config
    graph: Graph
    paths: dict[str, Path]

    @property
    def recover_dtype(self) -> str:
        """The precision that a recovery takes on the configuration's device."""
        return precision("recover.dtype", self.config.recover.dtype, self.graph.device)


def built(overrides: Sequence[str], roles: Sequence[str]) -> Built:
    """Return the artifacts of these roles of a pipeline configuration, built where the store lacks them.

    Raises:
        UserError: as a run of the pipeline would.
    """
    config = pipeline.compose(*overrides)
    graph = build_graph(config)
    engine = engine_of(config, graph)
    return Built(config, graph, {role: engine.ensure(graph.roles[role]).path for role in roles})


def engine_of(config: Config, graph: Graph) -> Engine:
    """Return an engine over the configuration's store. `Engine.ensure` builds a node where the store lacks it."""
    store = Store.at(config.runtime.artifact_root)
    store.prepare()
    return Engine(graph, store, cache=cache_directory(config), force=[])


def random_model(name: str, like: Path, directory: Path) -> Path:
    """Write a model with random weights in bfloat16, of the shape in conf/model/`name`.yaml. Return its parent.

    The tokenizer, and with it the size of the vocabulary, is that of the artifact `like`.

    Raises:
        UserError: there is no such model, or its file has no shape.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    check_arguments([f"model={name}"])
    entry = yaml.safe_load((resources.files("conf") / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    if "shape" not in entry:
        raise UserError(f"conf/model/{name}.yaml gives no shape to build random weights of.")
    tokenizer = load_tokenizer(like / "model")
    shape = entry["shape"] | {"vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=torch.bfloat16)
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    return directory


def collect(overrides: Sequence[str], *, limit: int, generate_limit: int) -> Material:
    """Return the model and the tasks of a pipeline configuration, built where the store lacks them.

    Args:
        overrides: overrides of the pipeline's command line (`model=local model.path=DIR evaluate.tasks=[piqa]`).
        limit: documents a task.
        generate_limit: prompts a task.

    Raises:
        UserError: as a run of the pipeline would.
    """
    material = built(overrides, ["model", "tasks"])
    model, rows, graph, config = material.paths["model"], material.paths["tasks"], material.graph, material.config
    tasks = graph.roles["tasks"].config.tasks
    return Material(
        model=model / "model",
        device=graph.device,
        dtype=precision("evaluate.dtype", config.evaluate.dtype, graph.device),
        documents={task: _documents(rows, task, limit) for task in tasks},
        prompts={task: _prompts(rows, task, generate_limit) for task in tasks},
    )


def _documents(artifact: Path, name: str, limit: int) -> list[Document]:
    found = load(name, artifact, limit=limit)
    return [document for task in found.values() for document in documents(task, limit=limit)]


def _prompts(artifact: Path, name: str, limit: int) -> list[str]:
    split = read_json(artifact / "tasks.json")[name]["leaves"][name]["split"]
    rows = islice(read_jsonl(leaf_folder(artifact, name) / f"{split}.jsonl"), limit)
    return [EVALUATION.format(instruction=instruct(name, row).instruction) for row in rows]
