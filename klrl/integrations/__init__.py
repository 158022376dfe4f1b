"""Other libraries' policies, measured and read; experiment trackers."""
