"""The texts of the hub for perplexity, by name. No torch here, because a plan reads the names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A text of the hub: one file of a data set at a commit.

    Attributes:
        repo: the data set.
        revision: the data set's commit, or a branch that the plan resolves.
        file: the file in the data set, Parquet or gzipped JSON lines.
        column: the column whose rows are joined.
        rows: how many rows are joined. A file with fewer is another text.
        whole: whether these are all of the file's rows.
        joint: the text between two rows.
        source: a description for readers of the record.
    """

    repo: str
    revision: str
    file: str
    column: str
    rows: int
    whole: bool = True
    joint: str
    source: str


CORPORA: dict[str, Corpus] = {
    "wikitext2": Corpus(
        repo="Salesforce/wikitext",
        revision="b08601e04326c79dfdd32d625aee71d232d685c3",
        file="wikitext-2-raw-v1/test-00000-of-00001.parquet",
        column="text",
        rows=4358,
        joint="\n\n",
        source="wikitext-2-raw-v1, test split",
    ),
    "ptb": Corpus(
        # The original, ptb-text-only/ptb_text_only, is a program; this copy of it also has the rows as parquet.
        repo="FALcon6/ptb_text_only",
        revision="main",
        file="penn_treebank/validation/0000.parquet",
        column="sentence",
        rows=3370,
        joint="\n\n",
        source="Penn Treebank (Mikolov's), validation split",
    ),
    "c4": Corpus(
        repo="allenai/c4",
        revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        file="en/c4-validation.00000-of-00008.json.gz",
        column="text",
        rows=1100,
        whole=False,
        joint=" ",
        source="C4 en, first 1,100 documents of the first validation shard",
    ),
}
