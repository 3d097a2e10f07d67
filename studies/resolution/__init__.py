"""What hierarchical, windowed and full attention cost as images grow."""
