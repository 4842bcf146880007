"""k3dreg: an OCI registry whose content is the local Docker engine."""
