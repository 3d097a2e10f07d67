"""Studies: what the project claims, measured by scripts that anyone can run again."""
