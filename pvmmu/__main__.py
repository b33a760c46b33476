"""``python -m pvmmu`` is the command ``pvmmu``."""

import sys

from pvmmu.cli import main

if __name__ == "__main__":
    sys.exit(main())
