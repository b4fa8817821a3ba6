"""What a model costs: profiling one model, comparing many."""
