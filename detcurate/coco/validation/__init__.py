"""Validation of COCO files: the findings and the checks that report them."""
