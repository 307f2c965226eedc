"""What a feature means, once, in plain Python: the oracle that both engines are tested against."""
