"""The CTR models that show what images add to click prediction."""
