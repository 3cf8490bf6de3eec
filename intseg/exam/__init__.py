"""What an op is examined with: inputs at its corners, branches and mistakes of its own, its twin in real numbers."""
