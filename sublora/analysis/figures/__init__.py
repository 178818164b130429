"""The figures. Each function takes the runs table (and histories where it needs them) and returns a Figure."""
