"""The lineage of a model, recorded beside its weights: config, the dense model's origin, pruning and recovery.

It is read from the files beside the weights. A part that is not recorded is empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from stages.common.files import read_json
from stages.stage import JSON

ORIGIN = "origin.json"
"""The file beside a source model's directory that says where the model comes from, and its license."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The known lineage of a model. What is not known is empty.

    Attributes:
        config: its config.json.
        base: origin of the dense model, as its origin.json has it: repo, revision, member, license, where known; and
            its name.
        pruning: its pruning.json.
        recovery: its recovery.json.
        results: measured results, in Markdown.
    """

    config: JSON
    base: JSON = field(default_factory=dict)
    pruning: JSON = field(default_factory=dict)
    recovery: JSON = field(default_factory=dict)
    results: str = ""

    @property
    def name(self) -> str:
        """The dense model's name."""
        return name_of(self.base)


def name_of(base: JSON) -> str:
    """Return the name of the model whose origin.json is `base`."""
    member = Path(base.get("member") or "").stem
    return str(base.get("name") or base.get("repo") or member or "the model")


def revision(base: JSON) -> str:
    """Return " (`repository` at commit)", or nothing where either is not known."""
    return f" (`{base['repo']}` at {base['revision'][:12]})" if base.get("repo") and base.get("revision") else ""


def described(base: JSON) -> str:
    """Return the words by which a sentence names the model that came from `base`."""
    return f"{name_of(base)}{revision(base)}" if base else "the dense model"


def base_of(model: Path) -> JSON:
    """Return the recorded origin of the dense model behind the model directory `model`; empty without a record."""
    for record in (model / "pruning.json", model.parent / "recovery.json"):
        if record.is_file():
            return dict(read_json(record).get("base") or {})
    origin = model.parent / ORIGIN
    return dict(read_json(origin)) if origin.is_file() else {}


def lineage(
    model: Path, *, base: JSON | None = None, recovery: JSON | None = None, name: str = "", results: str = ""
) -> Lineage:
    """Return what is recorded beside the weights in the model directory `model`, with what is given."""
    pruning = model / "pruning.json"
    return Lineage(
        config=read_json(model / "config.json"),
        base=(base_of(model) if base is None else base) | ({"name": name} if name else {}),
        pruning=read_json(pruning) if pruning.is_file() else {},
        recovery=recovery or {},
        results=results,
    )


def title(known: Lineage) -> str:
    """Return one line with the model's name and what was done to it."""
    steps = []
    if known.pruning.get("method"):
        share = known.pruning.get("ratio", {}).get("achieved")
        amount = f" by {share:.1%}".replace("%", " %") if share is not None else ""
        steps.append(f"{'masked' if known.pruning.get('masks') else 'pruned'}{amount} ({known.pruning['method']})")
    if known.recovery.get("adapter"):
        steps.append(f"recovered with {known.recovery['adapter']['name']}")
    return f"{known.name}{', ' if steps else ''}{' and '.join(steps)}"
