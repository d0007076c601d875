"""Studies of structure: pruning, growth, search, editing in weight space."""
