"""Chunks of the vocabulary: small beside a processor's caches, large where the head's bytes are what takes time."""

from __future__ import annotations

import pytest
import torch

from stages.decoders.chunks import BYTES, chunk_size

GPU = torch.device("cuda")


def test_a_processor_keeps_its_chunks() -> None:
    assert chunk_size(torch.device("cpu"), 128_256, 256) == 256


@pytest.mark.parametrize("vocabulary", [32_000, 49_152, 128_256, 262_144])
def test_on_a_gpu_logits_fill_the_bytes_and_no_more(vocabulary: int) -> None:
    size = chunk_size(GPU, vocabulary, 128)
    assert BYTES - 4 * vocabulary < 4 * vocabulary * size <= BYTES


def test_a_chunk_is_never_smaller_than_on_a_processor() -> None:
    assert chunk_size(GPU, 10_000_000, 128) == 128
