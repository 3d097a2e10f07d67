"""What corrupted images do to the accuracy of hierarchical, windowed and full attention."""
