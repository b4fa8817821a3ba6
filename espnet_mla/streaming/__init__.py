"""Speech in piece by piece, text out."""
