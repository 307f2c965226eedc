"""How CTR models are compared: gains, slices, uncertainty."""
