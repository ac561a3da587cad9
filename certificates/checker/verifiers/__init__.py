"""One verifier per kind of claim, one file each; none imports another."""
