"""The targets stand on the service in memory that the tests of the front channel have."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "edge"))
