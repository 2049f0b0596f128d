"""Structured pruning: what is scored, how much goes where, how weights are cut. The modules, in the order of a run:

config criteria/          the options; how groups are ranked, one file a criterion
stage scoring record      the two stages, scores and prune, and what they leave on record
calibration groups        the text; what leaves together, and what stays of a model

allocate                  which way a budget is shared out
plan limits               budgets and the printed plan; the most that can go
uniform ranking search    every layer alike; groups in competition; by measured loss
compensation surgery      making up for what goes; cutting

layerwise activations     forward passes layer by layer; statistics of activations
gradients taylor slices   gradients that are never held; Taylor scores of rows and columns, of groups
curvature                 what removing inputs of a linear map costs the loss
memory weights offload    what it will need; what is held in memory, and when (resident)
products                  bfloat16 on processors without it

sparse/ methods           masks in place of cuts; every way by name
"""
