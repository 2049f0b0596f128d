"""What is held in memory, and when: the estimate, weights in memory or a layer at a time from disk."""
