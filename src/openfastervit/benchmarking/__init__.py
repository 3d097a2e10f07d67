"""What a network costs."""

from openfastervit.benchmarking.complexity import Part, Summary, multiply_adds, summarise

__all__ = ["Part", "Summary", "multiply_adds", "summarise"]
