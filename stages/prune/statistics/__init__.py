"""What calibration text does inside a decoder: activations layer by layer, gradients that are never held, curvature."""
