"""Tests of twctl: folders mirror the tree; kernel, conformance, vm and bench need a real kernel."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
