"""Who may use this registry: a file of users and their passwords."""
