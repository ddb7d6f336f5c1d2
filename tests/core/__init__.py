"""The C core alone: pyfanout.core over real sockets, nothing of the master's or a worker's Python."""
