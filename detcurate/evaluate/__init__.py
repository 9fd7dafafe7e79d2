"""COCO figures of one model, and the comparison of arms over training seeds."""
