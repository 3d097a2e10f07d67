"""One training loop for every task. Import what is needed from its modules."""
