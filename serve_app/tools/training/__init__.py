"""How the tiny checkpoint learns to edit pictures of the toy world: needed to make its weights, not to use them."""
