"""Tests that hold README.md and docs/ to the code."""
