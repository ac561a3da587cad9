"""Plants, written once as graphs, and their Gymnasium environments."""
