"""The demo: a pocket FasterViT learns to read handwritten digits, and a report shows what it made of them."""

from openfastervit.demo.job import Summary, run

__all__ = ["Summary", "run"]
