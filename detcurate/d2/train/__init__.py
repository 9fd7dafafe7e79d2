"""Training with Detectron2."""
