"""Values of the OCI specifications: digests, references, manifests, routes, errors.  No module here does I/O."""
