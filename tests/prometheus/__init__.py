"""Unit tests of the rules, and pictures of Prometheus with them."""
