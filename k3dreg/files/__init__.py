"""The engine's own files: read in place, or through a container that never runs."""
