#!/usr/bin/env python
"""Curate a labelled detection pool: the same command as ``detcurate``."""

import sys

from detcurate.cli import main

if __name__ == "__main__":  # the workers import this file again
    sys.exit(main())
