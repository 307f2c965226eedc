"""Proof that nothing of the future reaches a training row."""
