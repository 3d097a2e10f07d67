"""The report: one HTML file that needs nothing else, from what a run found. Every figure in it is computed there."""

from openfastervit.demo.report.page import render
from openfastervit.demo.report.results import PAGE, Results

__all__ = ["PAGE", "Results", "render"]
