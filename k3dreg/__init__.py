"""k3dreg: an OCI registry whose content is the local Docker engine."""

__version__ = "0.1.0"
