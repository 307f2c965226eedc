"""The CTR models: LightGBM, and target attention."""
