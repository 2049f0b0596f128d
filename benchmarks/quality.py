"""Time to quality: our road from a dense model to a recovered one against the stock road, in the same run.

    python -m benchmarks.quality
    python -m benchmarks.quality --ratios 0.2 --rounds 2
    python -m benchmarks.quality --ratios 0.5 --tokens 6000 --our-tokens 4000 --tune-tokens 2000 --every 2000 --limit 4

The stock road is LLM-Pruner's recipe for the cut, then transformers' Trainer with PEFT's LoRA. It trains on the rows
of our road (where the dense model writes rows, on those that it is asked), for `--tokens` tokens. Its learning rate is
the best of a few on short runs, by kinds of text that choices may be made by (`Use.chosen_by`). The time of these runs
is told apart and not charged to it. Our road is the recommended one (`benchmarks.road_plan.OURS`) with the budget of
its recipe. Both work in the same precision and with as many threads. Each part has a process of its own, one after the
other.

Seconds count what a road does after the dense model is loaded: scores, search, cut, training, and the reading and
writing of models between them. If the dense model writes rows, that counts too. They do not count the imports of
libraries, rows that need no model, the measuring of held-out text, and the merging of the adapter at the end.

Held-out perplexity is a geometric mean over the kinds of text that nothing is fitted to (`Use.judged`). Wikipedia's
passages stand beside it, because both roads may train on other passages.

- `time_to_stock_quality_ratio_20` is the seconds until ours is measured to be as good as the stock road at its best,
  over the stock road's seconds to that best; of 20 % removed. It is null where ours never is.
- `log_perplexity_recovered_20` is the logarithm of ours at its end minus that of the dense model, in nats.
- `passages_perplexity_20` has the perplexities of Wikipedia's passages.

What is finished is kept in `--folder` as it comes. A run that was stopped goes on when it is started again with the
same options, and loses at most a part: one cut or one training. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.courses import NAMED, Point, averaged, compare, mean_nats, point, table
from benchmarks.parts import Parts
from benchmarks.road_plan import CHOSEN_BY, JUDGED, Plan, lineage, needs, planned
from benchmarks.roads import (
    HeldOut,
    Machine,
    StockRecipe,
    Training,
    measure_model,
    run_stages,
    train_ours,
    train_stock,
)
from benchmarks.workers import apart
from pipeline.planning.graph import Node
from stages.common.machine import hardware
from stages.common.sealed import digest
from stages.errors import UserError
from stages.evaluate.config import EvaluateConfig
from stages.stage import JSON
from stages.text_library.kinds import DEFAULT

_apart = partial(apart, "benchmarks.roads")
TIME = (
    "On two fast cores it takes about an hour for each ratio and round, on slow ones two, a third of it to "
    "measure held-out text. --limit, --every and --tokens make it shorter."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the command line asks for."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # so that it can be followed while it runs
    options = _parser().parse_args(arguments)
    try:
        print(json.dumps(measured(options)))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def _parser() -> argparse.ArgumentParser:
    about = f"{(__doc__ or '').splitlines()[0]} {TIME}"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=about)
    number, documents = _positive, EvaluateConfig().passages
    parser.add_argument("--ratios", type=_numbers, default=[0.2, 0.5], help="shares to remove, with commas (0.2,0.5)")
    parser.add_argument("--tokens", type=number, default=150_000, help="that the stock road trains on (150000)")
    parser.add_argument("--our-tokens", type=number, help="that our road trains on; by default its recipe's own")
    parser.add_argument("--every", type=number, default=7_500, help="tokens between two measurements (7500)")
    parser.add_argument("--rounds", type=number, default=1, help="times that each road is walked, in turns (1)")
    parser.add_argument("--limit", type=number, default=documents, help=f"documents of each kind of text ({documents})")
    parser.add_argument("--rank", type=number, default=16, help="of the stock road's LoRA, and its alpha (16)")
    parser.add_argument(
        "--rates", type=_numbers, default=[3e-4, 1e-3, 3e-3, 1e-2], help="tried for it (3e-4,1e-3,3e-3,1e-2)"
    )
    parser.add_argument("--tune-tokens", type=number, default=15_000, help="of a trial of a rate (15000)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=number, help="processor threads of both roads; by default torch's choice")
    parser.add_argument("--folder", type=Path, default=Path("outputs/quality"), help="of results (outputs/quality)")
    parser.add_argument("overrides", nargs="*", help="of the pipeline, for both roads: model, runtime.artifact_root")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("give at least 1")
    return number


def _numbers(text: str) -> list[float]:
    if not (numbers := [float(part) for part in text.split(",")]) or min(numbers) <= 0:
        raise argparse.ArgumentTypeError("give numbers above 0 with commas between them")
    return numbers


def measured(options: argparse.Namespace) -> JSON:
    """Return the whole result. It is printed as it is measured.

    Raises:
        UserError: as a run of the pipeline would, or the options leave nothing to compare.
    """
    plans = [planned(ratio, options.overrides, options.device) for ratio in options.ratios]
    parts = Parts(options.folder / _identity(plans, options))
    print(f"in {parts.folder}; finished before, by a stopped run: {parts.finished()} parts")
    walks = [Walk(plan, options, parts) for plan in plans]
    dense = walks[0].dense()
    result: JSON = {"ratios": {}}
    for walk in walks:
        found, percent = walk.compare(point(dense)), walk.plan.percent
        result |= {f"{name}_{percent}": found.pop(name) for name in NAMED}
        result["ratios"][percent] = found
    result |= {"dense": dense, "kinds": list(JUDGED), "documents": options.limit, "rounds": options.rounds}
    result |= {"precision": walks[0].machine.dtype, "threads": options.threads, "hardware": hardware()}
    parts.close(result)
    return result


def _identity(plans: Sequence[Plan], options: argparse.Namespace) -> str:
    """Return a name of what is measured, how and on which machine. A run goes on with parts of that name alone."""
    asked = {name: value for name, value in vars(options).items() if name != "folder"}
    keys = [node.key for plan in plans for node in (plan.stock, plan.rows, plan.recovery, plan.graph.roles["tasks"])]
    return digest({"options": asked, "keys": keys, "hardware": hardware()})[:12]


@dataclass(frozen=True, slots=True)
class Made:
    """What stages made: artifacts by key, with those that were there before, and the seconds that count."""

    artifacts: Mapping[str, Path]
    seconds: float


class Walk:
    """Both roads at one ratio. Each part of them has a process of its own, or is left by a stopped run.

    Attributes:
        plan: the stages of the roads.
        machine: where and how the processes work.
    """

    def __init__(self, plan: Plan, options: argparse.Namespace, parts: Parts) -> None:
        self.plan, self._options, self._parts = plan, options, parts
        dtype = plan.recovery.config.dtype
        self.machine = Machine(device=options.device, dtype=dtype, threads=options.threads, cache=plan.cache)

    def dense(self) -> JSON:
        """Return the held-out perplexities of the dense model."""
        return self._texts("dense", self._there(self.plan.model))

    def compare(self, dense: Point) -> JSON:
        """Walk both roads as often as asked, in turns. Print their table, and return their figures."""
        stock, ours = [], []
        tuning: JSON = {}
        for turn in range(1, self._options.rounds + 1):
            tuning = tuning or self._tuning(self._stages(f"{turn}-stock-cut", self.plan.stock))
            stock.append(self._stock(tuning["learning_rate"], turn))
            ours.append(self._ours(turn))
        roads = averaged(stock), averaged(ours)
        print(table(self.plan.percent, dense, *roads))
        return compare(dense, *roads) | {"tuning": tuning}

    def _stock(self, rate: float, turn: int) -> list[Point]:
        """Return the course of the stock road."""
        cut = self._stages(f"{turn}-stock-cut", self.plan.stock)
        training = self._training(cut.artifacts[self.plan.stock.key], self._there(self.plan.rows), self._options.tokens)
        points = self._part(f"{turn}-stock-training", train_stock, training, self._recipe(rate), self.machine)
        return self._course(f"{turn}-stock", training, points, cut.seconds)

    def _ours(self, turn: int) -> list[Point]:
        """Return the course of our road."""
        node, recovery = self.plan.graph.roles["prune"], self.plan.recovery
        cut = self._stages(f"{turn}-ours-cut", node)
        # Rows that the dense model writes count: they are made between the cut and the training.
        rows = self._stages(f"{turn}-ours-rows", recovery.inputs["data"], cut.artifacts)
        tokens = self._options.our_tokens or recovery.config.recover.tokens
        training = self._training(cut.artifacts[node.key], rows.artifacts[recovery.inputs["data"].key], tokens)
        points = self._part(f"{turn}-ours-training", train_ours, training, self.machine)
        return self._course(f"{turn}-ours", training, points, cut.seconds, rows.seconds)

    def _course(
        self, name: str, training: Training, points: Sequence[JSON], cut: float, between: float = 0.0
    ) -> list[Point]:
        """Return a road's points: its cut, and those of its training, which began after `cut` + `between` seconds."""
        first = point(self._texts(f"{self.plan.percent}-{name}-cut-measured", training.inputs["model"]), seconds=cut)
        course = [first]
        course += [point(at["texts"], at["tokens"], cut + between + at["seconds"]) for at in points]
        for at in course:
            print(
                f"{self.plan.percent} %, {name}: {at.seconds:7.0f} s {at.tokens:8} tokens, "
                f"held-out perplexity {at.perplexity:9.2f}, passages {at.passages:9.2f}"
            )
        return course

    def _tuning(self, cut: Made) -> JSON:
        """Return the stock road's best learning rate, by short runs on kinds of text that choices may be made by."""
        model, data = cut.artifacts[self.plan.stock.key], self._there(self.plan.rows)
        short = self._training(model, data, self._options.tune_tokens)
        trial = replace(short, every=short.tokens, held_out=self._held_out(CHOSEN_BY))
        nats, seconds = {}, 0.0
        for rate in self._options.rates:
            points = self._part(f"rate-{rate:g}", train_stock, trial, self._recipe(rate), self.machine)
            nats[f"{rate:g}"] = mean_nats(points[-1]["texts"], CHOSEN_BY)
            seconds += points[-1]["seconds"]
            print(f"{self.plan.percent} %, rate {rate:g}: {nats[f'{rate:g}']:.3f} nats a token (chooses the rate)")
        best = min(self._options.rates, key=lambda rate: nats[f"{rate:g}"])
        return {"learning_rate": best, "nats": nats, "seconds": seconds, "tokens": short.tokens, "kinds": CHOSEN_BY}

    def _training(self, model: Path, data: Path, tokens: int) -> Training:
        recovery = self.plan.recovery
        taught = {name: self._there(node) for name, node in recovery.inputs.items() if name == "teacher"}
        return Training(
            inputs={"model": model, "data": data, **taught},
            config=recovery.config,
            tokens=tokens,
            every=self._options.every,
            held_out=self._held_out(DEFAULT),
        )

    def _recipe(self, rate: float) -> StockRecipe:
        return StockRecipe(rank=self._options.rank, alpha=self._options.rank, learning_rate=rate)

    def _held_out(self, kinds: tuple[str, ...]) -> HeldOut:
        tasks = self._there(self.plan.graph.roles["tasks"])
        return HeldOut(artifact=tasks, kinds=kinds, documents=self._options.limit)

    def _stages(self, name: str, node: Node, before: Mapping[str, Path] | None = None) -> Made:
        """Return the artifacts that `node` is made from, and itself. Of its stages, those that need the model count."""
        known = dict(before or {})
        due = [other for other in lineage(node) if other.key not in known]
        known |= {other.key: self._there(other) for other in due if not needs(other, self.plan.model)}
        timed = [other for other in due if other.key not in known]
        if not timed:
            return Made(known, 0.0)
        made = self._part(name, run_stages, timed, known, self.machine)
        return Made(known | {key: Path(path) for key, path in made["artifacts"].items()}, sum(made["seconds"].values()))

    def _there(self, node: Node) -> Path:
        """Return the artifact of a node whose time does not count, built in the store where that lacks it."""
        return self.plan.engine.ensure(node).path

    def _texts(self, name: str, artifact: Path) -> JSON:
        """Return the held-out perplexities of the model of an artifact."""
        held_out = self._held_out(DEFAULT)
        found: JSON = self._parts.part(name, lambda _: _apart(measure_model, artifact, held_out, self.machine))
        return found

    def _part(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `function` returns, which also gets the folder of the part."""
        return self._parts.part(
            f"{self.plan.percent}-{name}", lambda folder: _apart(function, *arguments, folder.resolve())
        )


if __name__ == "__main__":
    # As an exception, so that the part that runs in another process ends too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    main()
