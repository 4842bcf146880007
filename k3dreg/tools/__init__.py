"""Commands for people: `k3dreg doctor`, `k3dreg why`, `k3dreg warm`."""
