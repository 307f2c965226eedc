"""What a workspace holds of a user or an item, removed, with a proof: `courier forget`."""
