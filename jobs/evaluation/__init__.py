"""What images add to click prediction, and what an encoder knows."""
