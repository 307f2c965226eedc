"""The bytes behind an image reference, wherever it may lead."""
