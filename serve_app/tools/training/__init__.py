"""The training of the tiny checkpoint on the toy world: needed to make its weights, not to use them."""
