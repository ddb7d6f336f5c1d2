"""What runs in a worker only. Read `worker` first."""
