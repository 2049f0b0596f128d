"""Model cards: the README.md of every model directory that this project writes, from the records beside the weights.

Every function is pure, from records to Markdown, and a card leaves out what its record lacks. A card says what was
known when it was written. The prune and recover stages know no evaluation, so their cards have the losses they
measured. `export=` writes the card with the report's results. The front matter is the hub's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import yaml

from stages.decoders.lineage import Lineage, described, revision, title
from stages.decoders.registry import FAMILIES
from stages.decoders.shapes import DecoderShape
from stages.stage import JSON

CARD = "README.md"
"""The card's file name in a model directory."""
STAND_INS = {family.stand_in.family for family in FAMILIES.values() if family.stand_in}
"""Architectures that another family's models may be saved as."""
LATER = (
    "Evaluations were made after this directory was written: the report of the run has them, and `export=hf` a card "
    "with them."
)
MASKED_PAIR = """The model that this adapter was trained on has masks: weights that are zero and stay zero. With W its
weight, A and B the adapter's matrices, s its scale and M = [W ≠ 0], what was trained is

    W + s (B A) ⊙ M        (for DoRA: each row of it scaled to its magnitude)

PEFT knows no mask: loading this adapter on the pruned model with PEFT alone gives the unmasked sum W + s B A, which is
another model and no longer sparse. Use the merged model in `model/` beside this directory, whose zeros are exactly
those of the pruned model; or mask the product yourself."""

OWN_FORMAT = """PEFT has no such adapter. For each module that adapter_model.safetensors names there are two matrices, D
(`.down`) and U (`.up`), and its output, for inputs x, is

    {formula}

This project's code loads it on the model it was trained on, and no other:

```python
from pathlib import Path

from stages.adapters.loading import Source

model = Source.of(Path("RECOVERY"), base=Path("PRUNED")).load(dtype="float32")  # artifacts of the recover, prune stage
```"""


def model_card(known: Lineage, quantisation: JSON | None = None) -> str:
    """Return the card of a Hugging Face directory. `quantisation` is the record of the stage that quantised it."""
    loading = [
        _code(
            "python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'directory = "."  # this directory, or its name on the hub',
            f"model = AutoModelForCausalLM.from_pretrained(directory{_trust(known)})",
            "tokenizer = AutoTokenizer.from_pretrained(directory)",
        )
    ]
    reason = (known.pruning.get("architecture") or {}).get("reason")
    if _trust(known):
        loading.append(
            "No stock architecture takes these layers' shapes, so the directory carries one small modelling file, "
            "which `trust_remote_code=True` lets run."
        )
    elif reason and known.config.get("model_type") in STAND_INS:
        loading.append(f"Saved as `{known.config['model_type']}`: {reason}.")
    if quantisation:
        # vLLM has no class for layers that differ in shape.
        loading += [] if _trust(known) else [_code("bash", "vllm serve .")]
        loading += _quantised(quantisation)
    matter = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    return _card(known, matter, "", loading, tags=("compressed-tensors",) if quantisation else ())


def _quantised(record: JSON) -> Iterator[str]:
    """Yield how the weights were put in few bits, and what a user should know of it."""
    read = record.get("calibration")
    text = f", calibrated on {read['sequences']} sequences of {read['length']} tokens" if read else ""
    how = {"gptq": "GPTQ", "nearest": "rounding to the nearest"}[record["method"]]
    yield (
        f"Quantised as {record['scheme']} by {how}{text} ({record['engine']}): {record['matrices']} matrices, "
        f"{record['bytes']['before'] / 1e6:,.0f} MB before and {record['bytes']['after'] / 1e6:,.0f} MB after."
    )
    yield from (f"{remark[0].upper()}{remark[1:]}." for remark in record["remarks"])


def adapter_card(known: Lineage) -> str:
    """Return the card of an adapter directory. `known` is of the model that the adapter was trained on."""
    loading = [
        _code(
            "python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f'pruned = AutoModelForCausalLM.from_pretrained("PRUNED"{_trust(known)})  # what it was trained on',
            'model = PeftModel.from_pretrained(pruned, ".")',
        ),
        "The adapter fits the model it was trained on and no other: not the dense one, nor one pruned otherwise.",
    ]
    adapter = known.recovery.get("adapter", {})
    if known.recovery.get("masked_modules") and "unmergeable" not in adapter:
        loading = [MASKED_PAIR]
    if "formula" in adapter:
        loading = [OWN_FORMAT.format(formula=adapter["formula"])]
    return _card(known, {} if "formula" in adapter else {"library_name": "peft"}, "Adapter: ", loading)


def gguf_card(known: Lineage, conversion: JSON) -> str:
    """Return the card of a GGUF file. `conversion` is the summary of the stage that wrote the file."""
    architecture = conversion.get("architecture")
    what = f"llama.cpp's architecture `{architecture}`, matrices as {conversion.get('dtype')}."
    if architecture == "deci":
        what += " That is a llama whose head counts and feed-forward lengths are those of each layer."
    loading = [
        _code("bash", 'llama-cli -m model.gguf -p "Once upon a time"'),
        _code(
            "python",
            "from llama_cpp import Llama  # pip install llama-cpp-python",
            "",
            'print(Llama("model.gguf").create_completion("Once upon a time"))',
        ),
        what,
        *(f"{remark[0].upper()}{remark[1:]}." for remark in conversion.get("remarks", [])),
    ]
    if known.results:
        loading.append("The results above are those of the Hugging Face model that this file was written from.")
    matter = {"library_name": "gguf", "pipeline_tag": "text-generation"}
    return _card(known, matter, "", loading, tags=("gguf", "llama.cpp"))


SERVE = {
    "vllm": "vllm serve . --trust-remote-code",
    "sglang": "python -m sglang.launch_server --model-path . --trust-remote-code",
    "tensorrt": "trtllm-serve . --trust_remote_code",
}
"""The command by which each server serves this directory."""


def decilm_card(known: Lineage, conversion: JSON) -> str:
    """Return the card of a DeciLM directory. `conversion` is the summary of what wrote it; `known` is of the model."""
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)',
        'tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)',
    ]
    loading = [
        _code("bash", SERVE[conversion["server"]]),
        _code("python", *code),
        "The directory is in the DeciLM format (`nemotron-nas`), in which each layer has a shape of its own. Servers "
        "have code of their own for it, and run the small configuration file that lies here. transformers runs the "
        "modelling file beside it too.",
        *(f"{remark[0].upper()}{remark[1:]}." for remark in conversion.get("remarks", [])),
    ]
    if known.results:
        loading.append("The results above are those of the Hugging Face model that this directory was written from.")
    matter = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    return _card(known, matter, "", loading, tags=("decilm", conversion["server"]))


def _trust(known: Lineage) -> str:
    return ", trust_remote_code=True" if known.config.get("auto_map") else ""


def _code(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _card(known: Lineage, matter: JSON, prefix: str, loading: Sequence[str], tags: Iterable[str] = ()) -> str:
    parts = [
        _front_matter(known, matter, tags),
        f"# {prefix}{title(known)}",
        *_pruned(known),
        *_masked(known.pruning),
        *_trained(known.recovery, merged=not prefix),
        known.results.strip() or ("" if prefix else LATER),
        "## How to load it",
        *loading,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(known: Lineage, matter: JSON, tags: Iterable[str]) -> str:
    """Return the card's YAML: library, base model, license and tags, as the hub reads them."""
    fields = dict(matter)
    for name, value in (("base_model", known.base.get("repo")), ("license", known.base.get("license"))):
        if value:
            fields[name] = value
    method, adapter = known.pruning.get("method"), known.recovery.get("adapter", {}).get("name")
    pruned = ["pruned", "sparse" if known.pruning.get("masks") else "structured-pruning"] if method else []
    fields["tags"] = [*tags, *pruned, *(name for name in (method, adapter) if name)]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _pruned(known: Lineage) -> Iterator[str]:
    """Yield what was removed: sizes before and after, the options, and what is left of each layer."""
    record = known.pruning
    if not record.get("method"):
        return
    ratio = record.get("ratio", {})
    asked = f", asked for {_share(ratio['requested'])}" if ratio.get("requested") else ""
    yield "## What was pruned"
    yield f"Criterion `{record['method']}` on {known.name}{revision(known.base)}{asked}."
    macs, calibration = record.get("multiply_accumulates", {}), record.get("calibration") or {}
    rows = [("parameters", record.get("parameters", {})), ("multiply-accumulates a token", macs)]
    if record.get("nonzeros"):
        rows.insert(1, ("of them not zero", record["nonzeros"]))
    lines = ["| | dense | pruned | removed |", "| --- | ---: | ---: | ---: |"]
    for name, sizes in rows:
        if sizes.get("dense") and sizes.get("pruned") is not None:
            gone = _share(1 - sizes["pruned"] / sizes["dense"])
            lines.append(f"| {name} | {sizes['dense']:,} | {sizes['pruned']:,} | {gone} |")
    loss = calibration.get("loss") or {}
    if loss.get("dense") is not None and loss.get("pruned") is not None:
        lines.append(f"| calibration loss, nats a token | {loss['dense']:.3f} | {loss['pruned']:.3f} | |")
    yield "\n".join(lines)
    if calibration:
        yield f"Calibrated on {calibration['sequences']} sequences of {calibration['length']} tokens."
    if record.get("options"):
        yield f"Options: {_options(record['options'])}."
    shape = DecoderShape.from_config(known.config)
    of = f" of {len(record['layers'])}" if len(record.get("layers", [])) > len(shape.layers) else ""
    yield f"What is left: {len(shape.layers)}{of} layers, hidden size {shape.hidden:,}, heads of {shape.head_dim}."
    yield "\n".join(_layers(shape))
    if record.get("search"):
        yield f"The best of {len(record['search'])} allocations by the calibration loss."
    if record.get("remarks"):
        yield "\n".join(f"- {remark}" for remark in record["remarks"])
    if record.get("layers") and not record.get("masks"):
        yield "`pruning.json` names what was kept of each layer, by its index in the dense model."


def _layers(shape: DecoderShape) -> Iterator[str]:
    """Yield a table of each layer's present sizes. Equal neighbours share a row."""
    yield "| layers | query heads | key/value heads | MLP channels |"
    yield "| --- | ---: | ---: | ---: |"
    for layer, run in groupby(enumerate(shape.layers), key=lambda numbered: numbered[1]):
        first, *others = (index for index, _ in run)
        where = f"{first} to {others[-1]}" if others else str(first)
        yield f"| {where} | {layer.heads} | {layer.kv_heads} | {layer.mlp:,} |"


def _masked(record: JSON) -> Iterator[str]:
    if not record.get("masks"):
        return
    sparsity = record.get("sparsity", {})
    share = f" {_share(sparsity['achieved'])} of their weights are zero." if sparsity.get("achieved") else ""
    yield (
        f"Nothing was cut: {len(record['masks'])} matrices are masked.{share} They are stored and multiplied as dense "
        "matrices, so the model is as large and as slow as before unless a sparse kernel reads it."
    )


def _trained(record: JSON, *, merged: bool) -> Iterator[str]:
    """Yield what the recovery trained, on how many tokens and rows, and the losses it measured."""
    adapter, seen = record.get("adapter"), record.get("training", {})
    if not adapter:
        return
    sizes = adapter_sizes(adapter)
    of = f" of {sizes}" if sizes else ""
    others = ", ".join(f"{name}: rank {rank}" for name, rank in (adapter.get("ranks") or {}).items())
    of += f" ({others})" if others else ""
    on = f", on {', '.join(adapter['targets'])}" if adapter.get("targets") else ""
    own = f" (the model's own weights, {adapter['weights']})" if adapter.get("weights") else ""
    yield "## What the recovery trained"
    yield (
        f"Adapter `{adapter['name']}`{of}{on}{own or (', merged into the weights' if merged else '')}: "
        f"{record.get('parameters', {}).get('trainable', 0):,} parameters, {seen.get('tokens', 0):,} tokens of "
        f"{seen.get('rows', 0):,} rows in {seen.get('steps', 0):,} steps."
    )
    yield from training_remarks(record)
    if seen.get("rows_by_task"):
        yield f"Rows: {', '.join(f'{task} {count:,}' for task, count in seen['rows_by_task'].items())}."
    loss = record.get("validation", {})
    if loss.get("initial_loss") is not None and loss.get("final_loss") is not None:
        yield (
            f"On {loss.get('rows')} rows held out from this data the loss went from {loss['initial_loss']:.3f} to "
            f"{loss['final_loss']:.3f} nats a token."
        )


def adapter_sizes(adapter: JSON) -> str:
    """Return "rank 16, alpha 16, scaling 4", as recovery.json records an adapter; empty where it has no sizes."""
    # Recoveries made before adapters brought their sizes name them among the options.
    earlier = ("rank", "alpha", "bottleneck", "virtual_tokens", "scaling")
    sizes = adapter.get("sizes", {name.replace("_", " "): adapter[name] for name in earlier if name in adapter})
    return ", ".join(f"{name} {value:g}" for name, value in sizes.items())


def training_remarks(record: JSON) -> Iterator[str]:
    """Yield the objective's sentences, and one that says which parameters are saved if not the last."""
    objective, kept = record.get("objective", {}), record.get("kept", {})
    if "sentences" in objective:
        yield from objective["sentences"]
    elif "teacher" in objective:
        # Recoveries made before objectives brought their sentences. Those with a teacher were distillations.
        settings = f"temperature {objective['temperature']:g}, weight {objective['weight']:g}"
        yield f"Distilled from {described(objective['teacher'])} at {settings}."
    if kept.get("parameters") == "best":
        yield (
            f"What is saved is the model after {kept['tokens']:,} tokens (step {kept['step']:,}), where the validation "
            "loss was lowest."
        )


def _options(options: Mapping[str, Any]) -> str:
    """Return the options that are set, as `name=value`."""
    shown = {name: value for name, value in options.items() if value is not None and name not in ("method", "ratio")}
    return ", ".join(f"`{name}={_value(value)}`" for name, value in shown.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value).replace("`", "'")


def _share(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")
