"""Make the files that point a cluster at k3dreg: texts from checked values, without I/O."""
