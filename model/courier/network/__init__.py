"""The networks: backbones, the image encoder, intention reconstruction, the text tower."""
