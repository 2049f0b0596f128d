"""Processor time of an MLP's two products where its width is odd, and where it is rounded to a multiple of 64.

    python -m benchmarks.widths
    python -m benchmarks.widths --widths 8605 8640 8704 --tokens 512

Processor time adds up the threads'. The widths take turns, so that a busy machine slows all of them alike. A line has
the median and the range over the rounds. On a GPU, `python -m benchmarks.gpu_check --only matmul widths` measures it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch

from stages.decoders.architecture import DTYPES

HIDDEN = 2048
WIDTHS = (8605, 8640)
"""MLP channels that 20 % less leaves of a llama-7B's 11,008: as they come, and the multiple of 64."""


@torch.no_grad()
def measured(widths: Sequence[int], *, dtype: str, tokens: int, hidden: int, rounds: int) -> dict[int, list[float]]:
    """Return the seconds of processor time of both products for each width, round by round."""
    x_TE = torch.randn(tokens, hidden, dtype=DTYPES[dtype])
    weights = {
        width: (torch.randn(width, hidden, dtype=DTYPES[dtype]), torch.randn(hidden, width, dtype=DTYPES[dtype]))
        for width in widths
    }
    taken: dict[int, list[float]] = {width: [] for width in widths}
    # The first round is not counted: libraries choose their kernels in it.
    for _ in range(1 + rounds):
        for width, (up_CE, down_EC) in weights.items():
            started = time.process_time()
            torch.nn.functional.linear(torch.nn.functional.linear(x_TE, up_CE), down_EC)
            taken[width].append(time.process_time() - started)
    return {width: seconds[1:] for width, seconds in taken.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each precision and width."""
    options = _parser().parse_args(arguments)
    sizes = {name: getattr(options, name) for name in ("tokens", "hidden", "rounds")}
    for dtype in options.dtypes:
        for width, seconds in measured(options.widths, dtype=dtype, **sizes).items():
            low, middle, high = (1e3 * value for value in (min(seconds), median(seconds), max(seconds)))
            print(f"{dtype:9}{options.hidden} x {width:<7}{middle:8.1f} ms  [{low:.1f}, {high:.1f}]")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.widths", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help=f"MLP channels ({WIDTHS})")
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=128, help="tokens in a pass (128)")
    parser.add_argument("--hidden", type=int, default=HIDDEN, help=f"the other side of the matrices ({HIDDEN})")
    parser.add_argument("--rounds", type=int, default=25, help="rounds that are counted (25)")
    return parser


if __name__ == "__main__":
    main()
