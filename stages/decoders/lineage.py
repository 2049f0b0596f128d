"""How a model came to be, as recorded beside its weights: its config, the dense model's origin, pruning and recovery.

Read from the files beside the weights; what is not recorded is empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from stages.common.files import read_json
from stages.stage import JSON

ORIGIN = "origin.json"
"""Beside a source model's directory: where it comes from, and its license."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What is known of a model; empty where nothing is.

    Attributes:
        config: its config.json.
        base: where the dense model comes from, as its origin.json says: repo, revision, member, license, each if known;
            and its name.
        pruning: its pruning.json.
        recovery: its recovery.json.
        results: what was measured, in Markdown.
    """

    config: JSON
    base: JSON = field(default_factory=dict)
    pruning: JSON = field(default_factory=dict)
    recovery: JSON = field(default_factory=dict)
    results: str = ""

    @property
    def name(self) -> str:
        """What the dense model is called."""
        return name_of(self.base)


def name_of(base: JSON) -> str:
    """Return what the model is called that origin.json says came from `base`."""
    member = Path(base.get("member") or "").stem
    return str(base.get("name") or base.get("repo") or member or "the model")


def revision(base: JSON) -> str:
    """Return " (`repository` at commit)", or nothing where either is not known."""
    return f" (`{base['repo']}` at {base['revision'][:12]})" if base.get("repo") and base.get("revision") else ""


def described(base: JSON) -> str:
    """Return what a sentence calls the model that came from `base`."""
    return f"{name_of(base)}{revision(base)}" if base else "the dense model"


def base_of(model: Path) -> JSON:
    """Return where the dense model of the model directory `model` comes from, as far as that is recorded."""
    for record in (model / "pruning.json", model.parent / "recovery.json"):
        if record.is_file():
            return dict(read_json(record).get("base") or {})
    origin = model.parent / ORIGIN
    return dict(read_json(origin)) if origin.is_file() else {}


def lineage(
    model: Path, *, base: JSON | None = None, recovery: JSON | None = None, name: str = "", results: str = ""
) -> Lineage:
    """Return what is recorded beside the weights in the model directory `model`, and what is given."""
    pruning = model / "pruning.json"
    return Lineage(
        config=read_json(model / "config.json"),
        base=(base_of(model) if base is None else base) | ({"name": name} if name else {}),
        pruning=read_json(pruning) if pruning.is_file() else {},
        recovery=recovery or {},
        results=results,
    )


def title(known: Lineage) -> str:
    """Return one line: what the model is called and what was done to it."""
    steps = []
    if known.pruning.get("method"):
        share = known.pruning.get("ratio", {}).get("achieved")
        amount = f" by {share:.1%}".replace("%", " %") if share is not None else ""
        steps.append(f"{'masked' if known.pruning.get('masks') else 'pruned'}{amount} ({known.pruning['method']})")
    if known.recovery.get("adapter"):
        steps.append(f"recovered with {known.recovery['adapter']['name']}")
    return f"{known.name}{', ' if steps else ''}{' and '.join(steps)}"
