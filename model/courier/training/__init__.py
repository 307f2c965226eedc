"""Pre-training: the loop, its processes, what it keeps and watches."""
