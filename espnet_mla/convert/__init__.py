"""A trained model in, one with a smaller KV cache out: `espnet-mla convert`."""
