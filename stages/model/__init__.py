"""The `model` stage: a model from a wheel, the hub or a local directory becomes an ordinary model directory."""
