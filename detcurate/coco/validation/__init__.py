"""Validation of COCO files: the findings, their policies, and the checks that report them."""
