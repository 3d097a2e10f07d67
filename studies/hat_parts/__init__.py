"""Hierarchical attention, one part at a time."""
