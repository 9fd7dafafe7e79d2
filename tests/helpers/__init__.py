"""Helpers of more than one test module."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
