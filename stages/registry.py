"""Every stage by name. Functions are named, not imported, so a plan loads no torch.

A stage is in the folder of its name, except where a comment says which folder it shares. The names stay as they are,
because they are in the keys of artifacts.
"""

from __future__ import annotations

from stages.stage import Stage

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="model",
            version=1,
            function="stages.model.stage:run",
            outputs=("model/config.json",),
        ),
        Stage(
            name="tasks",
            version=3,
            function="stages.tasks.stage:run",
            outputs=("tasks.json", "texts.json", "corpora.json"),
        ),
        Stage(
            name="data",
            version=2,
            function="stages.data.stage:run",
            outputs=("train.jsonl", "validation.jsonl", "data.json"),
        ),
        # In prune's folder: the scores of groups that several prunings of one model read.
        Stage(
            name="scores",
            version=2,
            function="stages.prune.scores:run",
            outputs=("scores.safetensors",),
        ),
        Stage(
            name="prune",
            version=3,
            function="stages.prune.stage:run",
            outputs=(
                "model/config.json",
                "model/model.safetensors.index.json|model/model.safetensors",
                "model/pruning.json",
            ),
        ),
        Stage(
            name="recover",
            version=3,
            function="stages.recover.stage:run",
            outputs=("model/config.json|adapter/adapter_config.json", "history.jsonl", "recovery.json"),
        ),
        # In recover's folder, as is "tune": a trial trains at one learning rate, tune takes the best trial.
        Stage(
            name="trial",
            version=1,
            function="stages.recover.tuning:trial",
            outputs=("history.jsonl", "recovery.json"),
        ),
        Stage(
            name="tune",
            version=1,
            function="stages.recover.tuning:tune",
            outputs=("model/config.json|adapter/adapter_config.json", "history.jsonl", "recovery.json"),
        ),
        Stage(
            name="evaluate",
            version=3,
            function="stages.evaluate.stage:run",
            outputs=("results.json", "perplexity.json"),
        ),
        # In evaluate's folder: speed and memory of the models that evaluate judges.
        Stage(
            name="cost",
            version=3,
            function="stages.evaluate.cost:run",
            outputs=("cost.json",),
        ),
        Stage(
            name="report",
            version=6,
            function="stages.report.stage:run",
            outputs=("report.json", "report.md", "report.html", "results.md"),
        ),
        # In export's folder: the GGUF file that export then publishes.
        Stage(
            name="gguf",
            version=1,
            function="stages.export.gguf:run",
            outputs=("model.gguf", "conversion.json"),
        ),
        # In export's folder, too: a model in few bits, which evaluate judges and export publishes.
        Stage(
            name="quantise",
            version=1,
            function="stages.export.compressed:run",
            outputs=("model/config.json", "quantisation.json"),
        ),
        Stage(
            name="export",
            version=1,
            function="stages.export.stage:run",
            outputs=("README.md",),
        ),
    )
}
