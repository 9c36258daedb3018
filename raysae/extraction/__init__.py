"""From texts to a store: tokens first, on disk, then one forward pass for all sites, shard by shard."""
