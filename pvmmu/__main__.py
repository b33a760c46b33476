"""``python -m pvmmu`` is the command ``pvmmu``."""

import sys

from pvmmu.cli import main

sys.exit(main())
