"""Functions that prune, recover and judge a model in memory by the stages' own code, without a store."""
