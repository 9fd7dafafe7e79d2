"""Stored predictions of the ensemble."""
