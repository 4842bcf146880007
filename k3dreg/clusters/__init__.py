"""The files that point a cluster at k3dreg.  Text out of checked values, without I/O."""
