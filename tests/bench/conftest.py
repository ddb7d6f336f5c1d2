"""Makes the `bench` package of this repository importable: it is not installed, and must not be."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
