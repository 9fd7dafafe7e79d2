"""Selection of images: arrays in, arrays out, without torch, Detectron2 or files."""
