"""A rendered driving pool: perspective road scenes in sequences, with known defects planted in the labels."""

from detcurate.coco.synthetic.actors import CLASSES
from detcurate.coco.synthetic.dataset import SyntheticConfig, render_sequence, write_dataset
from detcurate.coco.synthetic.scene import Frame

__all__ = ["CLASSES", "Frame", "SyntheticConfig", "render_sequence", "write_dataset"]
