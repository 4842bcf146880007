"""Docker's Engine API through treq: requests, events, and the meaning of the engine's error messages."""
