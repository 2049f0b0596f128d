"""The sentences that open the comparison: which runs are best by quality, by size and by time.

They claim only what lies outside its interval, and for runs over several seeds only what holds for every seed against
every seed. What does not is named as within noise, or as resting on too few documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from pipeline.comparison.columns import latency, parameters
from pipeline.comparison.lines import Line, ranges
from pipeline.comparison.run import Run
from pipeline.comparison.scores import QUALITY, TEXT, Estimate, Score
from stages.report import wording as w
from stages.report.statistics import MINIMUM_UNITS

MOST = 6
"""Lines that a sentence lists by their runs; of more it gives the number of runs."""
TURNS = 5
"""Timings of a model, at least, whose range is compared. Two ranges of five lie apart by chance once in 126 times."""
DOUBTS = ("Within noise", "Too few documents")
"""How a sentence begins that claims nothing."""


def findings(group: Sequence[Line]) -> list[str]:
    """Return the sentences on runs that were judged alike. There are none on a single line."""
    if len(group) < 2:
        return []
    quality = [sentence for score in QUALITY for sentence in _quality(score, group)]
    found = [*quality, *_size(group), *_time(group)]
    return sorted(found, key=lambda sentence: sentence.startswith(DOUBTS))


def _quality(score: Score, group: Sequence[Line]) -> Iterator[str]:
    scored = [line for line in group if all(score.last(run) for run in line.runs)]
    if len(scored) < 2:
        return
    best = max(scored, key=lambda line: score.better * fmean(one.value for one in _estimates(score, line)))
    others = [line for line in scored if line is not best]
    behind = [line for line in others if _apart(score, best, line)]
    near = [line for line in others if line not in behind]
    if not behind:
        few = any(one.documents < MINIMUM_UNITS for line in scored for one in _estimates(score, line))
        said = f"{DOUBTS[few]} in {score.name}"
        yield f"{said}: fewer than {MINIMUM_UNITS}." if few else f"{said}: {_listed(scored)}."
        return
    first = f"Best in {score.name}: {_called(best)}, at {_at(score, best)}."
    if near:
        rest = f"{_listed(behind)} {_are(behind)} clearly worse; {_listed(near)} {_are(near)} within noise"
    else:
        rest = f"{'all others are' if len(others) > 1 else 'the other is'} clearly worse"
    yield f"{first} {_sentence(rest)}"


def _estimates(score: Score, line: Line) -> list[Estimate]:
    return [found for run in line.runs if (found := score.last(run))]


def _apart(score: Score, best: Line, other: Line) -> bool:
    """Return whether every seed of the best is clearly better than every seed of the other."""
    return all(score.apart(one, another) > 0 for one in best.runs for another in other.runs)


def _at(score: Score, line: Line) -> str:
    """Return the score with its interval, or the mean over seeds with the lowest and the highest."""
    found = _estimates(score, line)
    if len(found) == 1:
        return " ".join(filter(None, [score.write(found[0].value), w.span(found[0].interval, score.write)]))
    values = [one.value for one in found]
    ends = f"{w.bare(score.write(min(values)))} to {score.write(max(values))}"
    return f"{score.write(fmean(values))} ({ends} over {len(values)} seeds)"


def _size(group: Sequence[Line]) -> Iterator[str]:
    """Yield which runs are smallest, and which are the smallest that are not clearly worse than the best."""
    sized = [(size, line) for line in group if (size := parameters(line.runs[0])) is not None]
    if len({size for size, _ in sized}) < 2:
        return
    smallest = min(size for size, _ in sized)
    least = [line for size, line in sized if size == smallest]
    sentence = f"Smallest: {_called(least[0]) if len(least) == 1 else _listed(least)}, with {w.millions(smallest)} "
    sentence += "parameters."
    scored = [(size, line) for size, line in sized if len(_estimates(TEXT, line)) == len(line.runs)]
    if len(scored) > 1:
        best = min(scored, key=lambda one: fmean(found.value for found in _estimates(TEXT, one[1])))[1]
        size, line = min(
            ((size, line) for size, line in scored if line is best or not _apart(TEXT, best, line)),
            key=lambda one: one[0],
        )
        if size > smallest and line is not best:
            sentence += f" The smallest not clearly worse than the best in {TEXT.name}: {_listed([line])}, with "
            sentence += f"{w.millions(size)}."
    yield sentence


def _time(group: Sequence[Line]) -> Iterator[str]:
    """Yield which runs write a token fastest, where their range over repeats lies below that of others.

    Times are those of the dense model's that was measured by turns with them. A machine that other work kept busy
    slows both. Seconds of two sessions differ by that alone, even of models of one shape. With few turns a range says
    little, and with one nothing.
    """
    timed = [line for line in group if all(_turns(run) >= TURNS for run in line.runs)]
    if len(timed) < 2 or len({machine(run) for line in timed for run in line.runs}) > 1:
        return
    fastest = min(timed, key=_ratio)
    behind = [line for line in timed if _range(line)[0] > _range(fastest)[1]]
    near = [line for line in timed if line is not fastest and line not in behind]
    if not behind:
        yield f"Within noise in the time a token takes: {_listed(timed)}."
        return
    rest = f"; {_listed(near)} {_are(near)} within the range of its repeats" if near else ""
    slower = _sentence(f"{_listed(behind)} {_are(behind)} clearly slower{rest}")
    taken = f"{w.times(_ratio(fastest))} the dense model's time a token"
    yield f"Fastest: {_called(fastest)}, at {taken} {w.span(_range(fastest), w.times)}. {slower}"


def _turns(run: Run) -> int:
    """Return how often each model was timed; 0 where it was not."""
    return int(run.report["cost"].get("repeats", 0)) if latency(run).get("decode_ratio_range") else 0


def _ratio(line: Line) -> float:
    return fmean(latency(run)["decode_ratio"] for run in line.runs)


def _range(line: Line) -> tuple[float, float]:
    ends = [latency(run)["decode_ratio_range"] for run in line.runs]
    return min(low for low, _ in ends), max(high for _, high in ends)


def machine(run: Run) -> str:
    """Return where and how a run's cost was measured. Latencies that were measured otherwise can't be compared."""
    cost = run.report["cost"] or {}
    how = [cost.get(name) for name in ("hardware", "threads", "dtype", "prompt_tokens", "new_tokens")]
    return str([*how, latency(run).get("batch")])


def _called(line: Line) -> str:
    return f"{_listed([line])} ({line.name})"


def _listed(group: Sequence[Line]) -> str:
    numbers = sorted(run.number for line in group for run in line.runs)
    if len(group) > MOST:
        return f"{len(numbers)} runs"
    return f"run{'s' if len(numbers) > 1 else ''} {ranges(numbers)}"


def _are(group: Sequence[Line]) -> str:
    return "are" if sum(len(line.runs) for line in group) > 1 else "is"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
