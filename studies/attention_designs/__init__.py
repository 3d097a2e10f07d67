"""Six token mixers in the same network: accuracy against measured throughput."""
