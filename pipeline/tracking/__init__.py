"""Trackers that follow recoveries: in W&B, in a local dashboard of trackio, or nowhere."""
