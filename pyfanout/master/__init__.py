"""What runs in the master only. Read `supervisor` for the life of the workers, top to bottom."""
