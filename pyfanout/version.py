"""The version of pyfanout, which the log and `--version` show."""

__version__ = "0.1.0"
