"""The checks of `benchmarks.gpu_check`, one subject a file."""
