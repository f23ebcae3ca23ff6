"""Number-by-number comparison with outputs of the official implementation."""
