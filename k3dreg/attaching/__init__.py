"""Running clusters, pointed at k3dreg by their nodes' own files, and put back.  Only this writes into those files."""
