"""One layer from its weight to its codes and their errors."""
