"""Other libraries' policies, measured and read."""
