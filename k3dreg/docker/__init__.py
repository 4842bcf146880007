"""Docker's Engine API through treq: requests, events, and what the engine's words mean."""
