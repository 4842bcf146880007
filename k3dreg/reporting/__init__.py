"""How requests and jobs report what they do: traces, activities for observers, and log lines."""
