"""Encoders side by side through the probe and the CTR models."""
