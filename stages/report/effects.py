"""Comparisons of the models of one recovery: which differ, how much was lost, and how much came back.

Models are named by their place: "dense", "dense_recovered" (the dense model after the same recovery), "pruned",
"recovered", "quantised" (the last of these in few bits). Any may be absent. The lost and the retained share are
measured against the dense model after the same recovery where there is one, else against the dense model as it is.
"""

from __future__ import annotations

from stages.report.statistics import Array, Paired, difference, retained, share
from stages.stage import JSON

PAIRS = (
    ("pruned", "dense"),
    ("recovered", "pruned"),
    ("recovered", "dense"),
    ("dense_recovered", "dense"),
    ("recovered", "dense_recovered"),
)
"""The differences that a report gives, first minus second."""
QUANTISED = (("quantised", "recovered"), ("quantised", "pruned"), ("quantised", "dense"))
"""Those of a model in few bits, where there is one."""


def effects(scores: Paired, *, higher_is_better: bool, hits_MN: Array | None = None, floor: str = "0") -> JSON:
    """Return {"ONE_minus_OTHER": difference, "retained": …, "recovered": …} of the models that are there.

    `retained` is given only where higher is better. `hits_MN` are the documents' scores behind an accuracy, for
    McNemar's test. `floor` describes a score of 0 in words. A key is absent where one of its models is.
    """
    present = set(scores.models)
    found: JSON = {
        f"{one}_minus_{other}": difference(scores, one, other, hits_MN)
        for one, other in PAIRS + QUANTISED
        if {one, other} <= present and not _beside_the_point(one, other, present)
    }
    reference = "dense_recovered" if "dense_recovered" in present else "dense"
    if higher_is_better and {"recovered", reference} <= present:
        found["retained"] = retained(scores, reference=reference, recovered="recovered", floor=floor)
    if {reference, "pruned", "recovered"} <= present:
        found["recovered"] = share(
            scores,
            reference=reference,
            pruned="pruned",
            recovered="recovered",
            higher_is_better=higher_is_better,
            hits_MN=hits_MN,
        )
    return found


def _beside_the_point(one: str, other: str, present: set[str]) -> bool:
    """Return whether a quantised model was made from a later model than `other`."""
    return (one, other) == ("quantised", "pruned") and "recovered" in present
