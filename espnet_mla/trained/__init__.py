"""A trained model on the disk or the hub: find, check and load it, and transcribe with it."""
