"""Compiled loops of the scoring."""
