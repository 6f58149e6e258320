"""Instruction generation: a vision model writes the conversations of FERID, and rules check them."""
