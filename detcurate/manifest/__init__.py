"""Subset manifests: write, verify, compare and merge them."""
