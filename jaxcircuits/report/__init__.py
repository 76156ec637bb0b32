"""What people look at: figures and printed tables."""
