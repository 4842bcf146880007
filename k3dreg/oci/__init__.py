"""Values of the OCI specifications: digests, references, manifests, routes, errors.  No Twisted, no I/O."""
