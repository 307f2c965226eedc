"""What pre-training minimises: COURIER's losses and the baselines'."""
