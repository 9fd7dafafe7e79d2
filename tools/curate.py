#!/usr/bin/env python
"""Run ``detcurate`` from a checkout; with ``--config-file FILE KEY VALUE ...`` it is ``detcurate run``."""

import sys

from detcurate.cli import main

if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main())
