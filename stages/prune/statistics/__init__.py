"""Statistics of calibration text inside a decoder: activations layer by layer, gradients never stored, curvature."""
