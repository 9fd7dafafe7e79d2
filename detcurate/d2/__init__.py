"""Training and inference with Detectron2; no other package imports it."""

import logging
import warnings

# Detectron2 of 2024 triggers these warnings of newer torch and setuptools in every worker, and only it can fix them.
for _pattern in (
    r".*torch\.jit\.script.*",
    r".*pkg_resources is deprecated.*",
    r".*torch\.cuda\.amp\..*",
    r".*torch\.meshgrid.*",
):
    warnings.filterwarnings("ignore", message=_pattern)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
