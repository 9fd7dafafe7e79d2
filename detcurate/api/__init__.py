"""For notebooks: what a run has left below ``OUTPUT_DIR``, with a good ``repr``, as data frames, and as plots.

Everything is read by the functions that the stages themselves use; nothing is computed anew and nothing is written.
``to_pandas`` wants pandas (``pip install 'detcurate[notebook]'``); a plot draws on the matplotlib ``ax`` it is given.

These are views for people. The records that functions pass to each other are in :mod:`detcurate.structures`, whose
``Selection`` is another class than the one here.
"""

from detcurate.api.manifest_view import Manifest
from detcurate.api.pool_view import Pool
from detcurate.api.scores_view import Scores, Selection

__all__ = ["Manifest", "Pool", "Scores", "Selection"]
