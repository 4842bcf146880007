"""Values of the OCI world.  No Twisted, no I/O."""
