"""Requests to the registries that images come from, without the engine: client, tokens, downloads."""
