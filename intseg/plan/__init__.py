"""How the fast backend runs a graph: fused steps, memory laid out once, threads, the bounds that only kernels have."""
