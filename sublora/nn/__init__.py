"""The frozen network, its adapters, and the subspace they are trained in."""
