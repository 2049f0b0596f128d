"""Log-likelihoods of continuations: lm-eval `HFLM`'s numbers, with shared beginnings and few logits computed.

Owns the forward passes. The context of a question is run once for all its choices (`prefix_tree`), rows are bucketed by
tokens, and the vocabulary is multiplied only where a continuation is predicted, softmax in float32.

Shapes: B rows, L nodes of a row, T predicted tokens, N nodes that predict (fewer than T where choices share them),
C of those in a chunk, Q queries, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.errors import UserError
from stages.scoring.encoding import Encoder, Query
from stages.scoring.prefix_tree import Tree, batches, plant, tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CACHE_TOKENS = 512
"""Tokens in a pass on a processor, whose caches a larger one leaves: 512 score half again as fast as 2,048."""
CHUNK = 128
"""Nodes whose logits exist at a time: 128 × 49,152 float32 are 25 MB."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
"""Largest difference from the model's own forward pass that its precision explains."""


class Scorer:
    """A causal language model asked for log-likelihoods, in nats.

    Works for every decoder that takes a four-dimensional attention mask, adapters included. On construction two short
    sequences are scored both here and by the model's own forward pass.

    Raises:
        UserError: they differ (an architecture whose attention or output layer this does not know), or are not finite.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_tokens: int = 4096) -> None:
        self.model = model
        self.decoder = model.get_decoder()
        self.head = model.get_output_embeddings()
        self.softcap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self.window: int | None = getattr(model.config, "sliding_window", None)
        self.batch_tokens = batch_tokens
        self.pass_tokens = min(batch_tokens, CACHE_TOKENS) if model.device.type == "cpu" else batch_tokens
        self.encoder = Encoder(tokenizer, max_length=context_length(model, tokenizer))
        self._check_against_model()

    def loglikelihoods(self, requests: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Return, for each (context, continuation), its log-likelihood and whether greedy decoding would give it."""
        return self.score(self.encoder.queries(requests))

    @torch.inference_mode()
    def score(self, queries: Sequence[Query], advance: Callable[[int], object] = int) -> list[tuple[float, bool]]:
        """Return the same for `queries`, in their order; `advance` is told how many more are done."""
        total_Q = torch.zeros(len(queries), dtype=torch.float64)
        missed_Q = torch.zeros(len(queries), dtype=torch.int64)
        sequences = [query.inputs for query in queries]
        # A mask of ours would lift a sliding window, so where one bites every sequence keeps the model's own mask.
        share = self.window is None or max(map(len, sequences), default=0) <= self.window
        trees = plant(sequences, largest=self.batch_tokens, share=share)
        for batch in batches(trees, tokens=self.pass_tokens, pack=share):
            node_T, target_T, owner_T = _predictions(batch, queries)
            logprob_T, greedy_T = self._forward(batch, node_T, target_T)
            total_Q.index_add_(0, owner_T, logprob_T.double().cpu())
            missed_Q.index_add_(0, owner_T, (~greedy_T).long().cpu())
            advance(sum(len(tree.paths) for tree in batch))
        return list(zip(total_Q.tolist(), (missed_Q == 0).tolist(), strict=True))

    def _forward(self, batch: Sequence[Tree], node_T: Tensor, target_T: Tensor) -> tuple[Tensor, Tensor]:
        """Return each target's log-probability, and whether no other token is likelier."""
        device = self.model.device
        hidden_BLH = self.decoder(**tensors(batch, device), use_cache=False).last_hidden_state
        node_N, place_T = torch.unique(node_T.to(device), return_inverse=True)
        hidden_NH = hidden_BLH.flatten(0, 1)[node_N]
        target_T = target_T.to(device)
        logprob_T = torch.empty(len(target_T), device=device)
        greedy_T = torch.empty(len(target_T), dtype=torch.bool, device=device)
        for start in range(0, len(node_N), CHUNK):
            # Not logits − logsumexp, which is more accurate: over a long answer `HFLM`'s rounding is a bias of 1e-3.
            logprobs_CV = self._logits(hidden_NH[start : start + CHUNK]).log_softmax(dim=-1)
            here = (place_T >= start) & (place_T < start + CHUNK)
            row = place_T[here] - start
            logprob_T[here] = logprobs_CV[row, target_T[here]]
            greedy_T[here] = logprob_T[here] >= logprobs_CV.amax(dim=-1)[row]
        return logprob_T, greedy_T

    def _logits(self, hidden_CH: Tensor) -> Tensor:
        logits_CV: Tensor = self.head(hidden_CH).float()
        return logits_CV if self.softcap is None else self.softcap * torch.tanh(logits_CV / self.softcap)

    @torch.inference_mode()
    def _check_against_model(self) -> None:
        vocabulary = self.model.config.get_text_config().vocab_size
        ids = [(7 * place + 3) % vocabulary for place in range(8)]
        probes = [ids, ids[:4] + ids[:3]]
        queries = [Query(inputs=probe[:-1], targets=probe[1:], truncated=False) for probe in probes]
        for probe, (found, _) in zip(probes, self.score(queries), strict=True):
            probe_1L = torch.tensor([probe], device=self.model.device)
            logprob_LV = self.model(input_ids=probe_1L).logits[0, :-1].float().log_softmax(-1)
            wanted = float(logprob_LV.gather(1, probe_1L[0, 1:, None]).sum())
            if not torch.isfinite(torch.tensor(wanted)):
                raise UserError("the model's outputs are not finite. Check the weights, or evaluate in float32.")
            if not abs(found - wanted) <= TOLERANCE[self.model.dtype] * len(probe):
                raise UserError(
                    f"the scorer does not know this architecture ({type(self.model).__name__}): it finds a "
                    f"log-likelihood of {found:.4f} where the model's own forward pass gives {wanted:.4f}."
                )


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens the model reads at once, found where lm-eval's `HFLM` finds it."""
    from lm_eval.models.utils import resolve_max_length

    return int(resolve_max_length(model.config, tokenizer, default=2048))


def _predictions(batch: Sequence[Tree], queries: Sequence[Query]) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each predicted token of `batch`, its node in the flattened rows, its id, and its query's index."""
    length = max(map(len, batch))
    nodes: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for row, tree in enumerate(batch):
        for index, path in tree.paths.items():
            wanted = queries[index].targets
            nodes += [row * length + node for node in path[-len(wanted) :]]
            targets += wanted
            owners += [index] * len(wanted)
    return torch.tensor(nodes), torch.tensor(targets), torch.tensor(owners)
