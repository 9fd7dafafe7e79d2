"""Views of a finished run for notebooks: a readable ``repr``, data frames and plots.

The views read the files below a run's ``OUTPUT_DIR`` with the functions of the stages; they compute and write nothing.
They are also importable from ``detcurate`` itself. ``to_pandas`` needs pandas (``pip install 'detcurate[notebook]'``).
A plot draws on the matplotlib ``ax`` that it is given.

The records that functions pass to each other are in :mod:`detcurate.structures`. Its ``Selection`` is another class
than the view here.
"""

from detcurate.api.manifest_view import Manifest
from detcurate.api.pool_view import Pool
from detcurate.api.scores_view import Scores, Selection

__all__ = ["Manifest", "Pool", "Scores", "Selection"]
