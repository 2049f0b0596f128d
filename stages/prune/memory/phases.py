"""The memory of each phase of pruning, from shapes and options alone. No torch here.

    loss            the dense model's loss on the first sequences
    scores          by the criterion's kind (`SCORES`): Taylor expansions, or statistics of activations
    second moments  of the surgeon's scores, and of a search whose criterion has other scores; then the elimination
    trials          allocations tried on the model, each layer's fit beside the streams of all trials
    compensation    bias, least squares, or sequential with the dense and the cut model side by side

Each function counts what the code of its phase holds at its peak. Activations are those of a llama's layer.
"""

from __future__ import annotations

from collections.abc import Iterator

from stages.common.units import BYTES
from stages.decoders.shapes import DecoderShape
from stages.prune.config import FITTED
from stages.prune.memory.quantities import (
    Estimate,
    Work,
    batch_of,
    largest_layer,
    logits_of,
    streams_of,
    weights_of,
)
from stages.prune.memory.sizes import (
    BATCH_TOKENS,
    BLOCK,
    CURVATURE_TOKENS,
    DEVICE_BLOCK,
    GRAPH,
    LOSS,
    MOMENTS,
    TRIAL_FIT,
    graph_bytes,
    moment_bytes,
    output_widths,
    runs_of,
)

STREAMS = 8
"""Numbers a token, each as often as there are hidden channels, that sequential compensation holds beside a fit: the
streams of the dense and the cut model in front of a layer and inside it, and what its sub-layers read and give."""
BETWEEN = 10
"""The same while it passes on from the attention to the MLP, where nothing is fitted."""
BESIDE_MLP = 6
"""The same beside the fit of an MLP, without the inputs of its output projection, which are held too."""


def phases(work: Work) -> Iterator[Estimate]:
    """Yield the memory of every phase of `work`."""
    each, stored = BYTES[work.dtype], BYTES[work.stored]
    yield Estimate(phase="the weights", weights=weights_of(work, max(each, stored)))
    if not work.sequences:
        return
    yield _loss(work, each)
    if work.scores == "taylor":
        yield _taylor(work, each)
    if work.scores in ("activations", "elimination"):
        yield _activations(work, each)
    if work.scores == "surgeon" or work.losses:
        yield _moments(work, each)
        yield _elimination(work, each)
    if work.trials:
        yield _trials(work, each)
    if work.compensate in ("bias", "least_squares"):
        yield _compensation(work, stored)
    if work.compensate == "sequential":
        yield _sequential(work, stored)


def _loss(work: Work, each: int) -> Estimate:
    read = min(work.sequences, LOSS)
    at_work = max(batch_of(work, each, read), logits_of(work, each, read))
    activations = streams_of(work, each, 2 * read) + at_work
    return Estimate(phase="the loss", weights=weights_of(work, each), activations=activations)


def _taylor(work: Work, each: int) -> Estimate:
    shape, layer, tokens = work.shape, largest_layer(work), work.sequences * work.length
    held = [
        tokens * graph_bytes(one, shape.head_dim, hidden=shape.hidden, each=each, inputs=True) for one in shape.layers
    ]
    segments = runs_of(held, GRAPH)
    graph = max(sum(held[index] for index in segment) for segment in segments)
    # Backward holds the gradients of the stream and of the MLP's channels beside the graph, and a block of a weight's
    # gradient with its terms. The logits are gone by then.
    block = min(BLOCK if work.device == "cpu" else DEVICE_BLOCK, max(output_widths(shape, layer)) * shape.hidden)
    gradients = tokens * (3 * shape.hidden + 2 * layer.mlp) * each + block * (12 if each == 4 else 16 + each)
    at_work = max(gradients, 2 * logits_of(work, each, work.sequences))
    matrices = 0
    if work.output:
        # The gradient of all logits is kept: it is a factor of the output projection's gradient.
        matrices = tokens * shape.vocabulary * each
    return Estimate(
        phase="the gradients",
        weights=weights_of(work, each),
        activations=streams_of(work, each, len(segments) * work.sequences) + graph + at_work,
        matrices=matrices,
    )


def _activations(work: Work, each: int) -> Estimate:
    streams, batch = streams_of(work, each, 2 * work.sequences), batch_of(work, each, work.sequences)
    products, eliminated = 0, 0
    if work.scores == "elimination":
        # One map's products come once more, as a mean.
        widths = output_widths(work.shape, largest_layer(work))
        products = _products(work)
        eliminated = 4 * max(widths) ** 2 + _eliminated(work)
    return _alternating(work, each, "the activations", streams, products, batch, eliminated)


def _alternating(work: Work, each: int, phase: str, streams: int, matrices: int, batch: int, solved: int) -> Estimate:
    """Return the memory of a phase in which a layer is passed and then solved for (`batch`, `solved`)."""
    return Estimate(
        phase=phase,
        weights=weights_of(work, each),
        activations=streams + batch,
        matrices=matrices + max(0, solved - batch),
    )


def _moments(work: Work, each: int) -> Estimate:
    shape, layer = work.shape, largest_layer(work)
    counted = min(work.curvature, work.sequences)
    tokens = min(counted, max(1, CURVATURE_TOKENS // work.length)) * work.length
    runs, graph, inputs = _runs(shape), 0, 0
    for run in runs:
        held = [
            tokens * graph_bytes(shape.layers[index], shape.head_dim, hidden=shape.hidden, each=each) for index in run
        ]
        segments = runs_of(held, GRAPH)
        graph = max(graph, *(sum(held[index] for index in segment) for segment in segments))
        inputs = max(inputs, len(segments) * tokens * shape.hidden * each)
    # Between runs of layers, the gradients of the stream of all sequences are kept.
    kept = streams_of(work, each, counted) if len(runs) > 1 else 0
    at_work = tokens * ((3 * shape.hidden + 2 * layer.mlp) * each + 4 * layer.mlp)
    logits = 12 * tokens * shape.vocabulary
    return Estimate(
        phase="second moments",
        weights=weights_of(work, each),
        activations=graph + inputs + kept + max(at_work, logits),
        matrices=_gathered(shape),
    )


def _runs(shape: DecoderShape) -> list[range]:
    """Return the layers in runs whose second moments are gathered at once."""
    return runs_of([moment_bytes(shape, layer) for layer in shape.layers], MOMENTS)


def _gathered(shape: DecoderShape) -> int:
    """Return the bytes of second moments that are gathered at once."""
    return max(sum(moment_bytes(shape, shape.layers[index]) for index in run) for run in _runs(shape))


def _elimination(work: Work, each: int) -> Estimate:
    kept = streams_of(work, each, min(work.curvature, work.sequences)) if len(_runs(work.shape)) > 1 else 0
    matrices = _gathered(work.shape) + _eliminated(work)
    return Estimate(phase="elimination", weights=weights_of(work, each), activations=kept, matrices=matrices)


def _eliminated(work: Work) -> int:
    """Return the bytes of the elimination of one map's inputs, in float32.

    They are the inverse with its factor, or beside it the eigenvectors of the output gradients with LAPACK's room for
    them, or the weight in these coordinates.
    """
    hidden = work.shape.hidden
    return max(
        4 * max(3 * width**2, width**2 + 4 * hidden**2, width**2 + 2 * hidden**2 + 2 * width * hidden)
        for layer in work.shape.layers
        for width in (*output_widths(work.shape, layer), 0)
    )


def _trials(work: Work, each: int) -> Estimate:
    judges = min(work.judges, work.sequences)
    others = work.sequences - judges if work.sequences >= 2 * judges else work.sequences
    fitted = min(others, TRIAL_FIT) if work.fits else 0
    streams = streams_of(work, each, 2 * fitted + (work.trials + 1) * judges)
    batch = max(batch_of(work, each, max(fitted, judges)), logits_of(work, each, judges))
    values = sum(output_widths(work.shape, largest_layer(work))) * work.shape.hidden * each
    products, solved = (_products(work), _fit(work)) if work.fits else (0, 0)
    return _alternating(work, each, "trials of allocations", streams, products + values, batch, solved)


def _compensation(work: Work, each: int) -> Estimate:
    streams, batch = streams_of(work, each, 2 * work.sequences), batch_of(work, each, work.sequences)
    products, solved = (_products(work), _fit(work)) if work.compensate in FITTED else (0, 0)
    return _alternating(work, each, "compensation", streams, products, batch, solved)


def _products(work: Work) -> int:
    """Return the bytes of the products of the inputs of a layer's output projections, in float32."""
    return 4 * sum(width**2 for width in output_widths(work.shape, largest_layer(work)))


def _fit(work: Work) -> int:
    """Return the bytes of the fit of one output projection on products of its inputs, in float32, without these."""
    widths = output_widths(work.shape, largest_layer(work))
    return 4 * max(3 * width**2 + 4 * width * work.shape.hidden for width in widths)


def _sequential(work: Work, each: int) -> Estimate:
    shape, layer = work.shape, largest_layer(work)
    weights = weights_of(work, each) + shape.layer_parameters(layer) * each
    widest = max(output_widths(shape, layer))
    # The output projection is fitted on one product of its inputs, the maps that read the stream on two.
    output = 3 * widest**2 + 4 * widest * shape.hidden
    readers = 4 * shape.hidden**2 + 4 * widest * shape.hidden
    # The inputs of a batch exist as they are, in float32 and weighed, beside the sums that they are added to.
    tokens = min(work.sequences * work.length, max(work.length, BATCH_TOKENS))
    weighed = tokens * (each + (4 if each == 4 else 8)) * widest + 4 * (widest**2 + widest * shape.hidden)
    fit = max(4 * max(output, readers), batch_of(work, each, work.sequences), weighed)
    phase, streams = "sequential compensation", streams_of(work, each, work.sequences)
    in_mlp = BESIDE_MLP * streams + work.sequences * work.length * layer.mlp * each
    beside_a_fit = Estimate(phase=phase, weights=weights, activations=max(STREAMS * streams, in_mlp), matrices=fit)
    # What the MLP gives is one stream more, once nothing is fitted.
    between = Estimate(phase=phase, weights=weights, activations=max(BETWEEN * streams, in_mlp + streams))
    return max(beside_a_fit, between, key=lambda need: need.total)
