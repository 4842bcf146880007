"""Read Docker's own files: in place, through passed directories, or through containers that are never started."""
