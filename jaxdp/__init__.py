"""Training with differential privacy in JAX."""
