"""Render a driving pool: perspective road scenes in sequences, with known defects planted in the labels."""

from detcurate.synthetic.actors import CLASSES
from detcurate.synthetic.rendered_pool import SyntheticConfig, render_sequence, write_dataset
from detcurate.synthetic.scene import Frame

__all__ = ["CLASSES", "Frame", "SyntheticConfig", "render_sequence", "write_dataset"]
