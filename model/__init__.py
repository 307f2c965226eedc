"""Arrays in, arrays out: encoder, spaces, index, codebook, CTR models; knows no feature store, cluster or web."""
