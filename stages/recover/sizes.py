"""Sizes that decide how much of a recovery's work is in memory at once. No torch here.

The code that does the work and the estimate of its memory (`.estimate`) both read them here, so that they agree.
"""

CROSS_ENTROPY_CHUNK = 256
"""Labelled tokens whose logits exist at one time on a processor: 50 MB in float32 for a vocabulary of 49k."""
TRAINED_CHUNK = 512
"""The same for a head that is trained. Each chunk forms a gradient of the head's size."""
DIVERGENCE_CHUNK = 128
"""The same of student and teacher: 50 MB in float32 for 49k."""
