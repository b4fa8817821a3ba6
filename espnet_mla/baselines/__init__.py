"""Many experiments: planned, run side by side, compared."""
