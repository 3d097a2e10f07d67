"""Small images first, then larger ones, against larger ones all along, at equal cost."""
