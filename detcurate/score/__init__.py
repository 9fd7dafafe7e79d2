"""Scores of objects and images from the predictions of an ensemble: arrays in, arrays out, no files."""
