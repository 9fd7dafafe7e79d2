"""Selection: arrays in, arrays out; no torch, no Detectron2, no files."""
