"""Swin-T with hierarchical attention in place of its window attention."""
