"""COURIER: contrastive user intention reconstruction, from images and page views to an encoder."""
