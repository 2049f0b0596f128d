"""Log-likelihoods of continuations: lm-eval `HFLM`'s numbers, with shared beginnings, no padding and few logits.

This module owns the forward passes. A question's context is run once for all its choices (`prefix_tree`). Sequences of
any length lie end to end (`decoder`). The vocabulary is multiplied only where a continuation is predicted, and softmax
is in float32.

Shapes: S nodes of a segment, T nodes of a pass, N of them that predict, P predicted tokens (more than N where choices
share them), C predicting nodes of a chunk, Q query and K key/value heads, D head size, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.decoders.chunks import chunk_size
from stages.decoders.compressed import unrounded
from stages.decoders.logits import Logits
from stages.decoders.sdpa import without_plans
from stages.errors import UserError
from stages.inference.decoder import FlatDecoder, UnknownDecoder, product
from stages.inference.encoding import Encoder, Query
from stages.inference.prefix_tree import Tree, mask, passes, plant, side_by_side, tensors
from stages.inference.tree_attention import tree_attention
from stages.rows.bounds import on_device, sent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Answer = tuple[float, bool]
"""A log-likelihood in nats, and whether greedy decoding would give the continuation."""
PASS_TOKENS = {"cpu": 2048}
"""Tokens of a pass on a processor. A smaller pass makes slower matrix products, a larger one leaves the caches."""
SEGMENT = {"cpu": 128}
"""Nodes up to which small trees share one call of attention."""
CHUNK = 128
"""Nodes whose logits exist at a time on a processor. 128 × 49,152 in float32 are 25 MB."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
"""The largest difference from the model's own forward pass that its precision explains, in nats a token."""


class Scorer:
    """A causal language model asked for log-likelihoods, in nats.

    A model built as llama is runs through `FlatDecoder`. Any other runs through its own forward pass, if that takes a
    four-dimensional attention mask. On construction, the chosen way is compared with the model's plain forward pass.
    Where weights will change or carry an adapter, `joined` must be False, because `FlatDecoder` joins some weights;
    with `flat` False it is not used at all.

    Raises:
        UserError: the two differ (an architecture whose attention or output layer is unknown here), or the model's
            outputs are not finite.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_tokens: int = 4096,
        flat: bool = True,
        joined: bool = True,
    ) -> None:
        self.model = model
        self.head = model.get_output_embeddings()
        self.from_head = Logits.of(model)
        self.window: int | None = getattr(model.config, "sliding_window", None)
        self.limit(batch_tokens)
        self.segment = SEGMENT.get(model.device.type, 512)
        self.chunk = chunk_size(model.device, int(model.config.get_text_config().vocab_size), CHUNK)
        self.encoder = Encoder(tokenizer, max_length=context_length(model, tokenizer))
        with unrounded(model):
            self.flat = self._checked_decoder(fast=flat, joined=joined)

    def limit(self, batch_tokens: int) -> None:
        """Run about `batch_tokens` tokens at a time from now on."""
        self.batch_tokens = batch_tokens
        self.pass_tokens = min(batch_tokens, PASS_TOKENS.get(self.model.device.type, batch_tokens))

    def loglikelihoods(self, requests: Sequence[tuple[str, str]]) -> list[Answer]:
        """Return, for each (context, continuation), its log-likelihood and whether greedy decoding would give it."""
        return self.score(self.encoder.queries(requests))

    @torch.inference_mode()
    def score(self, queries: Sequence[Query], advance: Callable[[int], object] = int) -> list[Answer]:
        """Return the same for `queries`, in their order. `advance` is told how many more are on their way."""
        total_Q = torch.zeros(len(queries), dtype=torch.float64)
        missed_Q = torch.zeros(len(queries), dtype=torch.int64)
        found = []
        with without_plans(self.model.device):
            for batch in self._passes([query.inputs for query in queries]):
                row = side_by_side(batch)
                node_P, target_P, owner_P = _predictions(row, queries)
                found.append((owner_P, *self._logprobs(self._hidden(batch, row), node_P, target_P)))
                advance(len(row.paths))
        # Read at the end, because reading a number makes the host wait for the device.
        for owner_P, logprob_P, greedy_P in found:
            total_Q.index_add_(0, owner_P, logprob_P.double().cpu())
            missed_Q.index_add_(0, owner_P, (~greedy_P).long().cpu())
        return list(zip(total_Q.tolist(), (missed_Q == 0).tolist(), strict=True))

    @torch.inference_mode()
    def likeliest(self, queries: Sequence[Query]) -> list[list[int]]:
        """Return, for each query, the likeliest id at each of its targets' places, given the targets before it."""
        found = []
        with without_plans(self.model.device):
            for batch in self._passes([query.inputs for query in queries]):
                row = side_by_side(batch)
                node_P, _, owner_P = _predictions(row, queries)
                hidden_PH = self._hidden(batch, row)[sent(node_P, self.model.device)]
                chunks = torch.split(hidden_PH, self.chunk)
                found.append((owner_P, torch.cat([self.logits(hidden_CH).argmax(-1) for hidden_CH in chunks])))
        ids: list[list[int]] = [[] for _ in queries]
        for owner_P, ids_P in found:
            for owner, token in zip(owner_P.tolist(), ids_P.tolist(), strict=True):
                ids[owner].append(token)
        return ids

    def _passes(self, sequences: list[list[int]]) -> list[list[Tree]]:
        # A mask of ours would lift a sliding window. Where one bites, each sequence runs alone under the model's own.
        if self.window is not None and max(map(len, sequences), default=0) > self.window:
            return [[tree] for tree in plant(sequences, largest=0, share=False)]
        trees = plant(sequences, largest=self.batch_tokens)
        return list(passes(trees, tokens=self.pass_tokens, segment=self.segment))

    def _hidden(self, batch: Sequence[Tree], row: Tree) -> Tensor:
        """Return the last hidden states, [T, H], of all nodes of a pass. Its segments are side by side in `row`."""
        device = self.model.device
        tokens_T, depths_T = tensors(row, device)
        bites = self.window is not None and row.is_chain and len(row) > self.window
        if self.flat is not None and not bites:
            return self.flat(tokens_T, depths_T, tree_attention(batch, row, device))
        # Causal attention is right for a chain, and is what the model does without a mask.
        own = {} if row.is_chain else {"attention_mask": mask(row, device)[None, None]}
        inputs = {"input_ids": tokens_T[None], "position_ids": depths_T[None]}
        hidden_1TH: Tensor = self.model.get_decoder()(**inputs, **own, use_cache=False).last_hidden_state
        return hidden_1TH[0]

    def _logprobs(self, hidden_TH: Tensor, node_P: Tensor, target_P: Tensor) -> tuple[Tensor, Tensor]:
        """Return each target's log-probability, and whether no other token is likelier.

        What is where is worked out on the host, which knows it. On the device, its size would have to be waited for.
        """
        device = hidden_TH.device
        # Several targets may be predicted from one node, whose logits are computed once.
        node_N, place_P = torch.unique(node_P, return_inverse=True)
        order_P = place_P.argsort(stable=True)
        sizes = torch.bincount(place_P // self.chunk).tolist()
        ordered = (torch.split(sent(part_P[order_P], device), sizes) for part_P in (place_P % self.chunk, target_P))
        hidden = torch.split(hidden_TH[sent(node_N, device)], self.chunk)
        found, greedy = [], []
        for hidden_CH, row_C, target_C in zip(hidden, *ordered, strict=True):
            # log_softmax as in `HFLM`, to reproduce its rounding, a bias of 1e-3 over a long answer. logits − logsumexp
            # would be more accurate.
            logprobs_CV = self.logits(hidden_CH).log_softmax(dim=-1)
            found.append(logprobs_CV[row_C, target_C])
            greedy.append(found[-1] >= logprobs_CV.amax(dim=-1)[row_C])
        back_P = sent(order_P.argsort(), device)
        return torch.cat(found)[back_P], torch.cat(greedy)[back_P]

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """Return the logits of hidden states, [C, V], in float32."""
        return self.from_head(product(self.head, hidden_CH).float())

    @torch.inference_mode()
    def _checked_decoder(self, *, fast: bool, joined: bool) -> FlatDecoder | None:
        """Return the fast decoder if it computes what the model does, else None: the model's own way is needed."""
        probes = _probes(self.model.config.get_text_config().vocab_size)
        wanted = [self._plain_loglikelihood(probe) for probe in probes]
        if not all(map(isfinite, wanted)):
            raise UserError("the model's outputs are not finite. Check the weights, or evaluate in float32.")
        # The fast way first, then the model's own forward pass under our masks. The first that agrees is used.
        for decoder in (_flat_decoder(self.model, joined=joined) if fast else None, None):
            self.flat = decoder
            found = self.score([Query(inputs=probe[:-1], targets=probe[1:], truncated=False) for probe in probes])
            differences = [abs(one[0] - other) for one, other in zip(found, wanted, strict=True)]
            if max(differences) <= TOLERANCE[self._precision()] * len(probes[0]):
                return decoder
        raise UserError(
            f"the scorer does not know this architecture ({type(self.model).__name__}): it finds log-likelihoods that "
            f"differ by {max(differences):.4f} from those of the model's own forward pass."
        )

    def _precision(self) -> torch.dtype:
        device = self.model.device.type
        # Under autocast, passes round as autocast's type does, whatever type the weights have.
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.model.dtype

    def _plain_loglikelihood(self, ids: list[int]) -> float:
        ids_1L = on_device(ids, self.model.device, torch.long)[None]
        with without_plans(self.model.device):
            logprob_LV = self.model(input_ids=ids_1L).logits[0, :-1].float().log_softmax(-1)
        return float(logprob_LV.gather(1, ids_1L[0, 1:, None]).sum())


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens that the model reads at once, found where lm-eval's `HFLM` finds it."""
    from lm_eval.models.utils import resolve_max_length

    return int(resolve_max_length(model.config, tokenizer, default=2048))


def _flat_decoder(model: PreTrainedModel, *, joined: bool) -> FlatDecoder | None:
    try:
        return FlatDecoder(model, joined=joined)
    except UnknownDecoder:
        return None


def _probes(vocabulary: int) -> list[list[int]]:
    """Return two sequences that begin alike, so that a shared beginning is checked too."""
    ids = [(7 * place + 3) % vocabulary for place in range(32)]
    return [ids, ids[:4] + ids[:3]]


def _predictions(row: Tree, queries: Sequence[Query]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the node, the id and the query's index of each predicted token of a pass."""
    nodes: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for index, path in row.paths.items():
        wanted = queries[index].targets
        nodes += path[-len(wanted) :]
        targets += wanted
        owners += [index] * len(wanted)
    return torch.tensor(nodes), torch.tensor(targets), torch.tensor(owners)
