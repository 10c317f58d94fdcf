"""What keeps the explorer current: sources, the merged truth, its history, and whoever follows it live."""
