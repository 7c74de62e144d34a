"""Jobs that outlive their connection: a runner, a store, and the deployment around them."""
