"""Controllers that optimise through a model."""
