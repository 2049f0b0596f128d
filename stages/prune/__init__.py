"""Structured pruning: groups of weights are scored, a budget is shared out, and the weights are cut.

In the order of a run:

config plan criteria/     the options and their meaning before a run; the scores of groups, one file a criterion
stage scores record       the two stages, scores and prune, and the files that record a pruning
calibration groups        the calibration text; the groups of weights, and the selection that stays
statistics/               activations layer by layer, gradients that are never stored, the loss that a removal costs
allocation/               budgets and the printed plan; shapes alike in all layers, in competition, or by measured loss
compensation surgery      output projections adjusted to make up for the cut; the cut itself
memory/                   the estimate of memory, and which weights are in memory at a time
sparse/ registry          masks in place of cuts; every method by name
"""
