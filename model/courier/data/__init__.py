"""From images and page views to the batches of a training step."""
