"""Channel pruning: what a shape costs, which channels matter, and which shape fits a budget."""
