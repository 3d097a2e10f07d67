"""What the studies that train have in common: runs, their table, seeds and verdicts, plots, the command line."""
