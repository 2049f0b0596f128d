"""Structured pruning: what is scored, how much goes where, how weights are cut. In the order of a run:

config criteria/          the options; how groups are ranked, one file a criterion
stage scoring record      the two stages, scores and prune, and what they leave on record
calibration groups        the text; what leaves together, and what stays of a model
statistics/               activations layer by layer, gradients that are never held, what removals cost the loss
allocation/               budgets and the printed plan; every layer alike, in competition, or by measured loss
compensation surgery      making up for what goes; cutting
memory/                   what it will need; what is held in memory, and when
sparse/ registry          masks in place of cuts; every way by name
"""
