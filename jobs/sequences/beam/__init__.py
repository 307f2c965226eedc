"""The sequences by Beam, as named PTransforms."""
