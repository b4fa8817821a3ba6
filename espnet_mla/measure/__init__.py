"""What a model costs: its figures, measured, and from what."""
