"""The trusted base: formats, exact and rigorous arithmetic, one verifier per kind of claim.

Everything here may import numpy, python-flint, safetensors and the standard library, and nothing else.
"""
