"""Imported by multiprocessing's fork server alone, before it makes the processes of a benchmark.

What they need is imported here, once for all. And the server ends with the process that started it: of itself it would
go on for as long as it has children, and a stopped one never ends.
"""

import openfastervit.benchmarking.cases
import openfastervit.benchmarking.dense_step  # noqa: F401
from openfastervit.benchmarking.worker import end_with_parent

end_with_parent()
