"""What courier runs on: containers, clusters, dashboards, and the migrations of its own tables."""
