"""Where the module that the tests of the images job share is found."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports tests as files, without a place for what they import
