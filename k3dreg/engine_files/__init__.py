"""Docker's own files: read in place, through passed directories, or through containers that are never started."""
