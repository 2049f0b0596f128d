"""Items of several parts, interleaved so that each part has its share at every point and not only at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

Item = TypeVar("Item")


def interleave(
    parts: Mapping[str, Iterator[Item]], weights: Mapping[str, float], size: Callable[[Item], int]
) -> Iterator[Item]:
    """Yield items until the part that is due has none left. Each part's share of all sizes is its weight.

    The part that has drawn least for its weight is due (of equals, the first). After any number of items, each part
    therefore has its share to within the size of one item of each.
    """
    drawn = dict.fromkeys(parts, 0)
    while True:
        due = min(parts, key=lambda name: drawn[name] / weights[name])
        try:
            item = next(parts[due])
        except StopIteration:
            return
        drawn[due] += size(item)
        yield item
