"""Studies of learning rules."""
