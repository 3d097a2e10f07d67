"""``python -m openfastervit_cli``: the command ``fastervit``, as launchers such as torchrun start it."""

import sys

from openfastervit_cli import main

if __name__ == "__main__":
    sys.exit(main())
