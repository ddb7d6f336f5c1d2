"""Measures pyfanout against what it replaces."""
