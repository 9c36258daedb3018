"""From texts to a store: first all tokens to disk, then one forward pass per shard for all sites."""
