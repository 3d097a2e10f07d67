"""What a task adds to a backbone: its data, head, loss and metrics. Import the task's module."""
