"""Predictions on disk: shards, prediction sets and embeddings."""
