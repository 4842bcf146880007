"""Credentials for the registries that images come from: Docker's own configuration, its helpers, AWS ECR."""
