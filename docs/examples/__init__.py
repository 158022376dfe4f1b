"""Programs that the pages show, and what they measure."""
