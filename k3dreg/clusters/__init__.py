"""Clusters on this machine: the files that point one at k3dreg, as texts, and the nodes that Docker runs."""
