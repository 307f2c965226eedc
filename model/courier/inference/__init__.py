"""What a trained encoder is used for: embedding a catalogue, ONNX, the probe."""
