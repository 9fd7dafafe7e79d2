"""Inference with the members of an ensemble."""
