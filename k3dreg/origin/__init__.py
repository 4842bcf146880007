"""Registries that images come from, asked directly."""
