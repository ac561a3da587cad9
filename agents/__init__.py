"""Experts, demonstrations and training of Lipschitz policies."""
