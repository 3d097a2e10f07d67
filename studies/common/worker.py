"""A process that trains one run: ``python -m studies.common.worker RUN OUT COMMAND``, run and command as JSON.

Its exit code is 0, or 128 and the signal's number where a signal stopped it; a traceback tells of anything else.
"""

import json
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Train it."""
    # torch takes seconds to import
    from openfastervit.benchmarking.worker import end_with_parent
    from openfastervit.training.trainer import Stopped
    from studies.common.runs import Run, train

    end_with_parent()
    run, out, command = arguments
    try:
        train(Run(**json.loads(run)), Path(out), json.loads(command))
    except Stopped as stopped:
        return 128 + stopped.signal_number
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
