"""What the weights and activations of a network are allowed to be."""
