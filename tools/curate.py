#!/usr/bin/env python
"""Run detcurate as a script in the manner of Detectron2: an alias of the command ``detcurate``."""

import sys

from detcurate.cli import main

if __name__ == "__main__":  # spawned workers import this file
    sys.exit(main())
