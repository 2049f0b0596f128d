"""What a benchmark works on: a model and documents of the artifact store, built there by the pipeline's own stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from pipeline.config import Config, register
from pipeline.engine import Engine
from pipeline.overrides import check_arguments
from pipeline.plan import build_graph, cache_directory
from pipeline.runtime import resolve_dtype
from pipeline.store import Store
from stages.files import read_json, read_jsonl
from stages.tasks.definitions import Document, documents, leaf_folder, load
from stages.tasks.instructions import EVALUATION, instruct


@dataclass(frozen=True, slots=True)
class Material:
    """One model and what it is asked.

    Attributes:
        model: the model's directory.
        device: where it runs.
        dtype: the precision that an evaluation takes there.
        documents: by task, each with its (context, continuation) requests.
        prompts: by task, those of the generation protocol.
    """

    model: Path
    device: str
    dtype: str
    documents: dict[str, list[Document]]
    prompts: dict[str, list[str]]


def collect(overrides: Sequence[str], *, limit: int, generate_limit: int) -> Material:
    """Return the model and the tasks of a pipeline configuration, built where the store has them not.

    Args:
        overrides: of the pipeline's command line (`model=local model.path=DIR evaluate.tasks=[piqa]`).
        limit: documents a task.
        generate_limit: prompts a task.

    Raises:
        UserError: what a run of the pipeline would raise.
    """
    register()
    check_arguments(list(overrides))
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("config", overrides=list(overrides)))
    assert isinstance(config, Config)
    graph = build_graph(config)
    store = Store(Path(config.runtime.artifact_root).expanduser().resolve())
    store.prepare()
    engine = Engine(graph, store, cache=cache_directory(config), force=[])
    model, rows = (engine.ensure(graph.roles[role]).path for role in ("model", "tasks"))
    tasks = graph.roles["tasks"].config.tasks
    return Material(
        model=model / "model",
        device=graph.device,
        dtype=resolve_dtype(config.evaluate.dtype, graph.device),
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
