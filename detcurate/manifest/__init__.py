"""Subset manifests and splits: write, verify, compare and merge them."""
