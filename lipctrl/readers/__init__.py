"""Foreign networks and policies brought into canonical form."""
