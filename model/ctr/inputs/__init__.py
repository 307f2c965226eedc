"""THE row -> model input, in training and in serving alike."""
