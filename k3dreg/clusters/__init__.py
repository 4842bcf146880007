"""Clusters on this machine: the files that point one at k3dreg, and layers that are linked into nodes.

The files are texts from checked values, without I/O.  Linking blocks and belongs into worker threads.  Nothing here
uses Twisted.
"""
