"""The files that point a cluster at k3dreg.  Text out of checked values, without I/O.

What each cluster makes of them is in the documentation and source of k3d (pkg/client/registry.go), k3s
(pkg/agent/containerd), kind and containerd (docs/hosts.md).
"""
