"""Registries that images come from, asked directly: client, tokens, downloads."""
