"""Detectron2: the only package of detcurate that imports it."""

import logging
import warnings

# What Detectron2 of 2024 does to newer torch and setuptools is theirs to mend; saying it in every worker helps nobody.
for _pattern in (
    r".*torch\.jit\.script.*",
    r".*pkg_resources is deprecated.*",
    r".*torch\.cuda\.amp\..*",
    r".*torch\.meshgrid.*",
):
    warnings.filterwarnings("ignore", message=_pattern)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
