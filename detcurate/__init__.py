"""detcurate: which part of a labelled detection pool trains a better detector, and how sure is that."""

from detcurate.errors import DetcurateError
from detcurate.structures import Clusters, Detections, ImageScores, Selection
from detcurate.version import __version__

__all__ = ["Clusters", "DetcurateError", "Detections", "ImageScores", "Selection", "__version__"]
