"""Lines: runs that differ in nothing but seeds, under a name that tells them from all other lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.comparison.run import Run
from pipeline.comparison.runs import adapter_of, but_for_seeds, grouped, made_by, without_seeds
from pipeline.planning.keys import differences, flatten
from stages.report import wording as w
from stages.stage import JSON

MOST = 3
"""Settings that a name has at most; the table has them all."""
GROUPS = ("data", "reference")
"""Choices that a name has before others: what they stand for is many options."""
RECOVERY = ("adapter.", "recover.")
"""How the options of a recovery begin, which a name has next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Runs that differ in nothing but seeds, with their number among the lines and their name."""

    number: int
    name: str
    runs: Sequence[Run]

    @property
    def label(self) -> str:
        """The name with the runs' numbers in the table."""
        return f"{ranges([run.number for run in self.runs])} · {self.name}"


def lines(groups: Sequence[Sequence[Run]]) -> list[Line]:
    """Return the runs of all groups as lines, in the order of their first runs."""
    alike = [found for group in groups for found in grouped(group, lambda run: but_for_seeds(run.report))]
    models = {found[0].report["model"] for found in alike}
    named = [(_name(found[0].report, len(models) > 1), _settings(found[0].report), found) for found in alike]
    names = {id(found): name for name, items in told_apart(named, MOST) for found in items}
    return [Line(number=place, name=names[id(found)], runs=found) for place, found in enumerate(alike)]


def of_group(lines: Sequence[Line], group: Sequence[Run]) -> list[Line]:
    """Return the lines whose runs are in a group. A line never spans two groups."""
    numbers = {run.number for run in group}
    return [line for line in lines if line.runs[0].number in numbers]


def told_apart(found: Sequence[tuple[str, JSON, Any]], most: int | None = None) -> list[tuple[str, list[Any]]]:
    """Return (name, items) for each choice of settings, from (name, settings, item) of each item, by name.

    Items of one name and other settings get settings in which they differ added to the name: no more than tell them
    apart, and at most `most`.
    """
    choices: dict[str, dict[str, tuple[JSON, list[Any]]]] = {}
    for name, settings, item in found:
        own = choices.setdefault(name, {}).setdefault(json.dumps(settings, sort_keys=True), (settings, []))
        own[1].append(item)
    named = []
    for name, alike in sorted(choices.items()):
        first = next(iter(alike.values()))[0]
        differ = {field for settings, _ in alike.values() for field in differences(first, settings)}
        flat = [flatten(settings) for settings, _ in alike.values()]
        apart = sorted(differ, key=lambda field: (field not in GROUPS, not field.startswith(RECOVERY), field))
        fields = _telling(flat, apart)[:most]
        for settings, (_, items) in zip(flat, alike.values(), strict=True):
            said = _said(settings, fields)
            named.append((f"{name} ({said})" if said else name, items))
    return named


def _telling(choices: Sequence[Mapping[str, Any]], fields: Iterable[str]) -> list[str]:
    """Return those of `fields`, in order, each of which tells more of the choices apart than those before it do."""
    taken: list[str] = []
    told = 1
    for field in fields:
        more = len({_said(choice, [*taken, field]) for choice in choices})
        if more > told:
            taken, told = [*taken, field], more
    return taken


def _said(settings: Mapping[str, Any], fields: Iterable[str]) -> str:
    """Return settings as on the command line."""
    return ", ".join(f"{field}={_written(settings.get(field))}" for field in fields)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _name(report: JSON, with_model: bool) -> str:
    achieved = report["params"]["ratio_achieved"]
    removed = "" if achieved is None else f" −{w.percent(achieved, digits=0)}"
    adapter = "no recovery" if report["adapter"] == "none" else adapter_of(report)
    return ", ".join([*([report["model"]] if with_model else []), f"{report['prune']}{removed}", adapter])


def _settings(report: JSON) -> JSON:
    """Return what may set lines of one name apart. How they were judged does not: headings tell that."""
    made = made_by(without_seeds(report["configuration"]))
    recovery, rows = made.pop("recover", {}), flatten({"data": made.pop("data", {})})
    # The name of the rows stands for their options, which tell runs apart only where it does not.
    return {**recovery, **rows, **made, "data": report["data"], "reference": report["reference"]}


def ranges(numbers: Sequence[int]) -> str:
    """Return "3", "3, 5" or "1–4, 7": ascending numbers, of which three or more in a row are a range."""
    rows: list[list[int]] = []
    for number in numbers:
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    return ", ".join(f"{row[0]}–{row[-1]}" if len(row) > 2 else ", ".join(map(str, row)) for row in rows)
