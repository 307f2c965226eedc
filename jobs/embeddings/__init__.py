"""What is made of the vectors: cluster IDs and the nearest-neighbour index."""
