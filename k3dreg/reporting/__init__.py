"""What a request or a job reports while it runs: its trace, activities for observers, log lines."""
