"""Networks with a known upper bound on their Lipschitz constant."""
