"""``python -m openfastervit``: the command ``fastervit``."""

import sys

from openfastervit_cli import main

if __name__ == "__main__":
    sys.exit(main())
