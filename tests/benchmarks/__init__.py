"""Figures, measured side by side in one run, since machines are shared and noisy: ``make bench``."""

import sys
from pathlib import Path

# where the driver of a real kernel is
sys.path.insert(0, str(Path(__file__).parent.parent))
