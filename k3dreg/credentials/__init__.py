"""Find credentials for the registries that images come from: settings, AWS, Docker's configuration and helpers."""
