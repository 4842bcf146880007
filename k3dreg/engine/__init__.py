"""Docker's Engine API through treq."""
