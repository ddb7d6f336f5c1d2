"""What people do today without pyfanout, written as well as they would: no handicaps."""
