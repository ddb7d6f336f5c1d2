"""What pyfanout asks of the machine and the process: CPUs, signal masks, standard streams, the log."""
