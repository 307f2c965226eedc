"""The images stage: every image reference opened, verified, hashed and resized."""
